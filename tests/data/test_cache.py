"""The cache: the same numbers as on the fly, refused when stale, whole or absent."""

import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from foley_ray.audio.mel import LogMel
from foley_ray.checkpoint import load_part, read_info, save_model
from foley_ray.config import Augmentation
from foley_ray.data.cache import CacheInfo, cached_stream, is_cache, run_job
from foley_ray.data.dataset import StreamSettings, collate, training_stream
from foley_ray.data.ingest import ingest
from foley_ray.data.manifest import load_info
from foley_ray.data.procedural import MAKERS, write_recordings
from foley_ray.errors import DatasetError, ModelError, OutputError
from foley_ray.jobfile import CacheJob
from foley_ray.models.vae import encode
from foley_ray.presets import tiny

SPEC = tiny().model.audio


@pytest.fixture(scope="module")
def dataset(ray_local, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_recordings(folder / "recordings", count_per_class=3)
    ingest(folder / "recordings", folder / "dataset", sample_rate_hz=SPEC.sample_rate_hz)
    return folder / "dataset"


def job(dataset: Path, model: Path, **changes) -> CacheJob:
    return CacheJob(**{"preset": "tiny", "data": dataset, "out": dataset.parent / "cache", "init": (model,), **changes})


@pytest.fixture(scope="module")
def cache(dataset: Path, tiny_model: Path) -> Path:
    told: list[tuple[int, int]] = []
    info = run_job(job(dataset, tiny_model, variants=2, augment=True), lambda done, total: told.append((done, total)))
    rows = load_info(dataset).rows("train")
    assert info.rows == 2 * rows
    assert told[-1] == (2 * rows, 2 * rows)
    return dataset.parent / "cache"


def test_a_cached_row_is_what_training_on_the_fly_would_have_computed(cache: Path, dataset: Path, tiny_model: Path) -> None:
    """The CLAP embedding exactly; the latent up to its own noise, which is small beside the spread of the means."""
    parts = read_info(tiny_model).parts
    rows = load_info(dataset).rows("train")
    cached = cached_stream(cache, StreamSettings(), SPEC, parts)
    stored: dict[str, list] = defaultdict(list)
    for batch in cached.batches(0, 1, 1, range(2 * rows)):
        assert batch["latent"].shape == (1, *SPEC.latent_shape(SPEC.clip_s))
        stored[str(batch["sha256"][0])].append(collate(batch))
    vae, clap, log_mel = load_part(tiny_model, "vae"), load_part(tiny_model, "clap"), LogMel(SPEC)
    fly = training_stream(dataset, StreamSettings(augment=True), SPEC)
    for drawn in fly.batches(0, 1, 1, range(4)):
        batch = collate(drawn)
        with torch.no_grad():
            embedding = clap.audio_embed(batch["wave"], SPEC.sample_rate_hz)[0]
            posterior = encode(vae, log_mel(batch["wave"]))
        known = min(stored[batch["sha256"][0]], key=lambda row: float((row["audio_embedding"][0] - embedding).norm()))
        torch.testing.assert_close(known["audio_embedding"][0], embedding, rtol=0, atol=1e-5)
        noise = (known["latent"][0] - posterior.mean[0]) / posterior.std[0]
        assert float(noise.mean().abs()) < 0.1
        assert float(noise.std()) == pytest.approx(1.0, abs=0.1)
        assert batch["caption"] == known["caption"]


def test_variants_are_different_crops(cache: Path, tiny_model: Path) -> None:
    stream = cached_stream(cache, StreamSettings(), SPEC, read_info(tiny_model).parts)
    embeddings: dict[str, list] = defaultdict(list)
    for batch in stream.batches(0, 1, 1, range(stream.rows_per_epoch)):
        embeddings[str(batch["sha256"][0])].append(batch["audio_embedding"][0])
    assert {len(found) for found in embeddings.values()} == {2}
    assert all(not np.array_equal(*found) for found in embeddings.values())


def test_a_balanced_cache_takes_as_many_crops_of_a_thin_class_each_another(ray_local, tiny_model: Path, tmp_path: Path) -> None:
    thin, rich = sorted(MAKERS)[:2]
    index = write_recordings(tmp_path / "recordings", count_per_class=6) / "metadata.csv"
    lines = index.read_text().splitlines(keepends=True)
    index.write_text("".join(line for line in lines if f"/{thin}/" not in line or f"/{thin}/0000" in line))
    ingest(tmp_path / "recordings", tmp_path / "dataset", sample_rate_hz=SPEC.sample_rate_hz)
    series = Augmentation(series={thin: 0.5})
    changes = {"classes": (thin, rich), "variants": 3, "augment": True, "balance": 1.0, "augmentation": series}
    info = run_job(job(tmp_path / "dataset", tiny_model, **changes))
    table = pa.concat_tables([pq.read_table(file) for file in sorted((tmp_path / "cache" / "data").iterdir())])
    assert Counter(table["class"].to_pylist()) == {thin: 9, rich: 9}  # of 1 recording and of 5
    assert len(set(table["audio_embedding"].to_pylist())) == info.rows == 18
    assert (info.balance, info.only_classes) == (1.0, (thin, rich))
    manners = table["manner"].to_pylist()
    assert set(zip(table["class"].to_pylist(), manners, strict=True)) == {(thin, "series"), (thin, "once"), (rich, "")}
    captions = {f"{thin}/series": ("series of it",), f"{thin}/once": ("once of it",)}
    asked = StreamSettings(captions=captions, caption_share=1.0)
    [batch] = cached_stream(tmp_path / "cache", asked, SPEC, read_info(tiny_model).parts).batches(0, 1, 18, range(1))
    told = Counter(batch["caption"].tolist())
    assert [told["series of it"], told["once of it"]] == [manners.count("series"), manners.count("once")]


def test_a_cache_of_other_parts_is_stale(cache: Path, tiny_model: Path, tmp_path: Path) -> None:
    vae = load_part(tiny_model, "vae")
    with torch.no_grad():
        vae.decoder.conv_out.bias.add_(0.01)
    other = save_model(tmp_path / "other", read_info(tiny_model), {"vae": vae, "clap": load_part(tiny_model, "clap")})
    with pytest.raises(DatasetError, match=r"was computed by another vae than this run is given; make it again"):
        cached_stream(cache, StreamSettings(), SPEC, other.parts)
    stands_for = (read_info(tiny_model).parts["vae"].digest,)  # as after training with decoder_only: the latents are the same
    parts = {**other.parts, "vae": other.parts["vae"].model_copy(update={"stands_for": stands_for})}
    cached_stream(cache, StreamSettings(), SPEC, parts)


def test_what_cannot_work_says_why_and_leaves_nothing(dataset: Path, cache: Path, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a finished cache already"):
        run_job(job(dataset, tiny_model))
    with pytest.raises(ModelError, match="the cache needs a trained vae"):
        run_job(job(dataset, tiny_model, init=(), out=tmp_path / "c"))
    with pytest.raises(DatasetError, match="no dataset at"):
        run_job(job(tmp_path / "nothing", tiny_model, out=tmp_path / "c"))
    assert is_cache(cache)
    assert not list(tmp_path.iterdir())


def test_a_damaged_index_is_named(cache: Path, tmp_path: Path) -> None:
    content = json.loads((cache / "cache.json").read_text())
    for spoiled in ("{", json.dumps({**content, "format_version": 99}), json.dumps({**content, "rows": "many"})):
        (tmp_path / "cache.json").write_text(spoiled)
        with pytest.raises(DatasetError, match=r"cache\.json .*; make the cache again"):
            CacheInfo.load(tmp_path)


def test_a_cache_is_made_from_and_read_at_a_uri(cache: Path, dataset: Path, tiny_model: Path, tmp_path: Path) -> None:
    run_job(job(dataset, tiny_model, data=dataset.as_uri(), out=tmp_path / "cache", variants=2, augment=True))
    assert CacheInfo.load((tmp_path / "cache").as_uri()) == CacheInfo.load(cache)
    for place in (tmp_path / "cache", (tmp_path / "cache").as_uri()):
        assert is_cache(place)
        batches = [
            next(cached_stream(folder, StreamSettings(), SPEC, read_info(tiny_model).parts).batches(0, 1, 4, range(1)))
            for folder in (cache, place)
        ]
        np.testing.assert_array_equal(batches[0]["latent"], batches[1]["latent"])
