"""dataset -> cache: what a diffusion model learns from, computed once by Ray Data's actor pools instead of at every step.

    CACHE/
      cache.json       CacheInfo; written last, so a folder without it is a cache that never finished
      data/*.parquet   rows of CACHE_SCHEMA; the files by name, and the rows within, are in the order of the stream

A row is one training crop: the same row of the dataset comes `variants` times, each time cropped and augmented anew. The
parts that computed a cache are named in it by digest, and training refuses a cache that other parts made.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import Field, ValidationError
from ray.data import ActorPoolStrategy

from foley_ray.audio.mel import LogMel
from foley_ray.checkpoint import Part, PartInfo, find_parts, load_part, model_folder
from foley_ray.config import USUAL_AUGMENTATION, Augmentation
from foley_ray.data.cluster import ensure_ray, forgive_actors, quiet_progress
from foley_ray.data.dataset import Columns, Drawing, StreamSettings, TrainingStream, Window, collate, row_rng, training_stream
from foley_ray.data.folder import Folder, absolute, has_file, read_text
from foley_ray.data.manifest import DATA_FOLDER, Split, load_info
from foley_ray.data.staging import staging
from foley_ray.errors import DatasetError, OutputError
from foley_ray.jobfile import CacheJob
from foley_ray.models.vae import encode
from foley_ray.presets import Preset, preset
from foley_ray.settings import Settings, describe
from foley_ray.spec import AudioSpec

FORMAT_VERSION = 2
INFO_FILE = "cache.json"
MAKERS: tuple[Part, ...] = ("vae", "clap")
FILE_ROWS = 256
"""Per Parquet file and per task: 7 MB of latents of 4 s."""
BATCH_ROWS = 8
"""Per call of the networks: more are no faster on a CPU."""
WRITER_CPUS = 0.8
"""What an encoder on a CPU reserves: on two cores, two and their readers fit."""

CACHE_SCHEMA = pa.schema(
    [
        pa.field("latent", pa.binary(), nullable=False),  # float16 (C, W, H): one sample of the VAE's posterior, not scaled
        pa.field("audio_embedding", pa.binary(), nullable=False),  # float32 (D,): CLAP's of the same crop
        pa.field("caption", pa.string(), nullable=False),
        pa.field("manner", pa.string(), nullable=False),  # captions.Manner: which wordings are true of this crop
        pa.field("class", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),  # of the recording
        pa.field("shippable", pa.bool_(), nullable=False),
        pa.field("variant", pa.int32(), nullable=False),
    ]
)

Progress = Callable[[int, int], None]


class CacheInfo(Settings):
    """What a cache was made from; `cache.json` is this."""

    format_version: int = FORMAT_VERSION
    preset: str
    audio: AudioSpec
    parts: dict[Part, str] = Field(description="digests of the parts that computed it")
    dataset: str = Field(description="digest of the dataset")
    classes: tuple[str, ...]
    split: Split
    shippable_only: bool
    seed: int
    augment: bool
    augmentation: Augmentation = USUAL_AUGMENTATION
    balance: float = 0.0
    only_classes: tuple[str, ...] = ()
    variants: int
    rows: int

    @property
    def digest(self) -> str:
        """Hex digest of everything that decides the content."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    @classmethod
    def load(cls, cache: Folder) -> Self:
        """Read `cache.json`. Raises DatasetError: never finished, another version, or damaged."""
        file = f"{cache}/{INFO_FILE}"
        try:
            content = json.loads(read_text(cache, INFO_FILE))
            if content["format_version"] != FORMAT_VERSION:
                raise ValueError(f"format version {content['format_version']}, this foley_ray reads {FORMAT_VERSION}")
            return cls.model_validate(content)
        except ValidationError as error:
            raise DatasetError(f"{file} is damaged ({describe(error)}); make the cache again") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DatasetError(f"{file} cannot be read ({error}); make the cache again") from None


def is_cache(folder: Folder) -> bool:
    """Whether a folder is a cache, rather than a dataset."""
    return has_file(folder, INFO_FILE)


def run_job(job: CacheJob, progress: Progress = lambda done, total: None, chosen: Preset | None = None) -> CacheInfo:
    """Make the cache that a job file asks for; `progress(done, total)` counts rows. `chosen` replaces its named preset.

    Raises DatasetError or ModelError for a dataset or parts that do not fit, and OutputError if `out` is taken or cannot be
    written; then nothing is left there.
    """
    chosen = chosen or preset(job.preset)
    given = find_parts([model_folder(path.resolve()) for path in job.init], chosen, needed=MAKERS, why="the cache")
    settings = StreamSettings(
        split=job.split,
        seed=job.seed,
        augment=job.augment,
        augmentation=job.augmentation,
        balance=job.balance,
        shippable_only=job.shippable_only,
        only_classes=job.classes,
    )
    dataset, audio = absolute(job.data), chosen.model.audio
    stream = training_stream(dataset, settings, audio)
    total = stream.rows_per_epoch * job.variants
    info = CacheInfo(
        preset=chosen.name,
        audio=audio,
        parts={name: owner.parts[name].digest for name, (_, owner) in given.items()},
        dataset=load_info(dataset).digest,
        classes=stream.classes,
        split=job.split,
        shippable_only=job.shippable_only,
        seed=job.seed,
        augment=job.augment,
        augmentation=job.augmentation,
        balance=job.balance,
        only_classes=job.classes,
        variants=job.variants,
        rows=total,
    )
    with staging(job.out.absolute(), index=INFO_FILE, what="cache", overwrite=job.overwrite) as folder:
        ensure_ray()
        quiet_progress()
        forgive_actors()
        (folder / DATA_FOLDER).mkdir()
        done = 0
        resources = {"num_gpus": 1} if job.gpu else {"num_cpus": WRITER_CPUS}
        outcomes = stream.share(0, 1, 1, range(total), readers=job.workers).map_batches(
            Encoder,
            fn_constructor_args=({name: place for name, (place, _) in given.items()}, info, folder / DATA_FOLDER, job.gpu),
            batch_size=FILE_ROWS,
            batch_format="numpy",
            compute=ActorPoolStrategy(min_size=1, max_size=job.workers),
            **resources,
        )
        for batch in outcomes.iter_batches(batch_size=None):
            if "error" in batch:
                raise OutputError(str(batch["error"][0]))
            done += int(batch["rows"].sum())
            progress(done, total)
        (folder / INFO_FILE).write_text(info.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return info


class Encoder:
    """Ray Data actor: the VAE and CLAP, loaded once, and a Parquet file for each batch of crops."""

    def __init__(self, places: Mapping[Part, Path], info: CacheInfo, folder: Path, gpu: bool):
        torch.set_num_threads(1)  # as many actors as cores share the machine
        self.device = torch.device("cuda" if gpu else "cpu")
        self.vae, self.clap = (load_part(places[name], name).to(self.device) for name in MAKERS)
        self.log_mel = LogMel(info.audio).to(self.device)
        self.info, self.folder = info, folder

    def __call__(self, batch: Columns) -> Columns:
        """Write a batch; how many rows that were, or an `error`, since Ray Data would dress a raised one up as its own.

        Named after its first row, so the files sort in stream order and a retried task writes the same file again.
        """
        rows = len(batch["row"])
        parts = [self._encoded({name: value[at : at + BATCH_ROWS] for name, value in batch.items()})
                 for at in range(0, rows, BATCH_ROWS)]  # fmt: skip
        latents, embeddings = (np.concatenate(found) for found in zip(*parts, strict=True))
        columns: dict[str, Any] = {
            "latent": [latent.tobytes() for latent in latents],
            "audio_embedding": [embedding.tobytes() for embedding in embeddings],
            "caption": batch["caption"],
            "manner": batch["manner"],
            "class": [self.info.classes[index] if index >= 0 else "" for index in batch["class_id"]],
            "split": [self.info.split] * rows,
            "sha256": batch["sha256"],
            "shippable": batch["shippable"],
            "variant": batch["epoch"].astype(np.int32),
        }
        target = self.folder / f"part-{batch['row'][0]:012d}.parquet"
        partial = target.with_suffix(f".{os.getpid()}.partial")
        try:
            pq.write_table(pa.table(columns, CACHE_SCHEMA), partial, compression="zstd")
            partial.replace(target)
        except OSError as error:
            return {"error": np.array([f"cannot write {target}: {error.strerror or error}"])}
        return {"rows": np.array([rows])}

    @torch.inference_mode()
    def _encoded(self, batch: Columns) -> tuple[np.ndarray, np.ndarray]:
        """Latents (B, C, W, H) float16 and CLAP audio embeddings (B, D) float32."""
        wave_BT = collate(batch)["wave"].to(self.device)
        posterior = encode(self.vae, self.log_mel(wave_BT))
        noise = [
            row_rng(self.info.seed, int(epoch), 0, sha256).standard_normal(posterior.mean.shape[1:], dtype=np.float32)
            for epoch, sha256 in zip(batch["epoch"], batch["sha256"], strict=True)
        ]
        latent_BCWH = posterior.mean + posterior.std * torch.from_numpy(np.stack(noise)).to(self.device)
        embedding_BD = self.clap.audio_embed(wave_BT, self.info.audio.sample_rate_hz)
        return latent_BCWH.half().cpu().numpy(), embedding_BD.float().cpu().numpy()


class LatentWindow(Window):
    """Rows of a cache: columns latent (C, W, H), audio_embedding (D,) and caption."""

    columns = ("latent", "audio_embedding", "caption", "manner")

    def __init__(
        self,
        table: pa.Table,
        drawing: Drawing,
        settings: StreamSettings,
        classes: Mapping[str, int],
        *,
        latent_shape: tuple[int, ...],
    ):
        super().__init__(table, drawing, settings, classes)
        self.latent_shape = latent_shape
        self.latents, self.embeddings = table["latent"], table["audio_embedding"]
        self.captions, self.manners = table["caption"].to_pylist(), table["manner"].to_pylist()

    def row(self, row: int, rng: np.random.Generator) -> dict[str, Any]:
        """One crop's latent, and the caption or one of its class's wordings."""
        return {
            "latent": np.frombuffer(self.latents[row].as_buffer(), np.float16).reshape(self.latent_shape),
            "audio_embedding": np.frombuffer(self.embeddings[row].as_buffer(), np.float32),
            "caption": self.settings.wording(self.captions[row], self.names[row], rng, self.manners[row]),
        }


def cached_stream(cache: Folder, settings: StreamSettings, audio: AudioSpec, parts: Mapping[Part, PartInfo]) -> TrainingStream:
    """Training rows of a cache: columns latent, audio_embedding, caption, class_id, sha256, epoch.

    Raises DatasetError if the cache is damaged, has no rows of the wanted kind, or was computed by other parts than `parts`.
    """
    info = CacheInfo.load(cache)
    stale = [name for name in MAKERS if not parts[name].serves(info.parts[name])]
    if stale or info.audio != audio:
        raise DatasetError(
            f"cache {cache} was computed by another {' and '.join(stale) or 'audio preset'} than this run is given; "
            "make it again with `foley cache`, from the same parts"
        )
    stream = TrainingStream(cache, settings, info.classes, LatentWindow, latent_shape=audio.latent_shape(audio.clip_s))
    if stream.rows_per_epoch == 0:
        kind = settings.split + " and shippable" * settings.shippable_only
        raise DatasetError(f"cache {cache} has no {kind} rows")
    return stream
