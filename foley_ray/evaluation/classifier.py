"""The yardstick: a classifier of sound classes, trained on real recordings alone, that says what a clip sounds like.

Independent of CLAP, so that it can judge what CLAP ranked. Everything is drawn from a seed: the same dataset, spec and seed
give the same classifier. It does not ship with a model, so it may hear recordings that a shipped model may not.

FOLDER/classifier.json   classes, settings, and how well it knew real clips it had not heard
FOLDER/classifier.safetensors
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from foley_ray.audio.files import replacing
from foley_ray.config import USUAL_AUGMENTATION
from foley_ray.data.augment import training_crop
from foley_ray.errors import DatasetError, ModelError
from foley_ray.evaluation.embed import log_mels
from foley_ray.evaluation.features import describe as features
from foley_ray.evaluation.recordings import Recording, clips
from foley_ray.settings import Settings, describe
from foley_ray.spec import AudioSpec

OTHER = "other"
FOLDS = 4
MIN_ROWS = 8
"""Train rows from which a class has a name of its own."""
OWN_ROOM_COPIES = 2
"""Augmented copies that keep the colour and the noise of their recording; the others lose them."""
MEMBERS = 3
BALANCE = 0.6
"""A class of n rows is drawn n ** (1 - BALANCE) times as often as one of a single row."""
PEAK_LR = 2e-3
INFO_FILE, WEIGHTS_FILE = "classifier.json", "classifier.safetensors"

Progress = Callable[[str], None]


class Right(Settings):
    """How many of a class's clips are named rightly."""

    of: int
    judged: int
    """When the choice is between the judged classes."""
    all: int
    """When it is between all classes."""


class ClassifierInfo(Settings):
    """classifier.json."""

    spec: AudioSpec
    classes: tuple[str, ...]
    """As the network counts them; the last is `other`: all classes too rare to have one of their own."""
    judged: tuple[str, ...]
    """The classes it is asked about."""
    kin: dict[str, str] = Field({})
    """class -> the judged class that its recordings also teach: a thin class learns from what listeners call the same."""
    seed: int
    dataset: str
    """Digest of the dataset's rows."""
    train_clips: int
    held_out: dict[str, Right] = Field({})
    """Among `eval` clips."""
    cross_validated: dict[str, Right] = Field({})
    """Among `train` clips, each judged by a network that heard no clip of its recording."""


class Net(nn.Module):
    """Standardised features (B, D) -> log-probabilities (B, C): the mean of a few small perceptrons."""

    mean: Tensor
    spread: Tensor

    def __init__(self, inputs: int, classes: int, members: int = MEMBERS, width: int = 256):
        super().__init__()
        self.width = width
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("spread", torch.ones(inputs))
        self.members = nn.ModuleList(
            nn.Sequential(
                nn.Dropout(0.3),
                nn.Linear(inputs, width),
                nn.BatchNorm1d(width),
                nn.ReLU(),
                nn.Dropout(0.5),
                nn.Linear(width, classes),
            )
            for _ in range(members)
        )

    def forward(self, feature_BD: Tensor) -> Tensor:
        """(B, C)."""
        standard_BD = self.standard(feature_BD)
        return torch.stack([member(standard_BD).log_softmax(1) for member in self.members]).mean(0).log_softmax(1)

    def hidden(self, feature_BD: Tensor) -> Tensor:
        """(B, width) of the first member, before its answer: the space in which sets of clips are compared."""
        member: Any = self.members[0]
        hidden_BD: Tensor = member[:4](self.standard(feature_BD))
        return hidden_BD

    def standard(self, feature_BD: Tensor) -> Tensor:
        """Zero mean and unit spread over the training examples, outliers cut off."""
        return ((feature_BD - self.mean) / self.spread).clamp(-5, 5)


class Classifier:
    """What a clip sounds like, in words of `info.classes`. Clips are (N, T) as recordings.clip prepares them."""

    def __init__(self, info: ClassifierInfo, net: Net):
        self.info, self.net = info, net.eval()

    @property
    def spec(self) -> AudioSpec:
        """How it hears."""
        return self.info.spec

    def log_probabilities(self, wave_NT: np.ndarray) -> np.ndarray:
        """(N, C)."""
        with torch.inference_mode():
            return self._per_clip(wave_NT, self.net.forward, len(self.info.classes))

    def embed(self, wave_NT: np.ndarray) -> np.ndarray:
        """(N, D) activations under the answer: a space that was not used to rank clips, for distances between sets."""
        with torch.inference_mode():
            return self._per_clip(wave_NT, self.net.hidden, self.net.width)

    def predict(self, wave_NT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N,) names twice: the likeliest of the judged classes, and the likeliest of all (see `likeliest`)."""
        return likeliest(self.log_probabilities(wave_NT), self.info)

    def summary(self) -> dict[str, Any]:
        """For a report: what it is and how far it can be trusted."""
        return self.info.model_dump(mode="json", exclude={"spec", "classes"}) | {"classes": len(self.info.classes)}

    def save(self, folder: Path) -> None:
        """Write both files, the weights first. Raises OutputError."""
        with replacing(folder / WEIGHTS_FILE) as temporary:
            save_file({name: value.contiguous() for name, value in self.net.state_dict().items()}, temporary)
        with replacing(folder / INFO_FILE) as temporary:
            temporary.write_text(self.info.model_dump_json(indent=1))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Raises ModelError if the folder holds no classifier."""
        try:
            info = ClassifierInfo.model_validate_json((folder / INFO_FILE).read_text())
            weights = load_file(folder / WEIGHTS_FILE)
            net = Net(len(weights["mean"]), len(info.classes))
            net.load_state_dict(weights)
        except ValidationError as error:
            raise ModelError(f"{folder / INFO_FILE} cannot be read: {describe(error)}; train it again") from None
        except (OSError, KeyError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"no classifier in {folder}: {error}; train it again") from None
        return cls(info, net)

    def _per_clip(self, wave_NT: np.ndarray, function: Callable[[Tensor], Tensor], width: int) -> np.ndarray:
        if not len(wave_NT):
            return np.zeros((0, width), dtype=np.float32)
        found_ND: np.ndarray = function(torch.from_numpy(heard(wave_NT, self.spec))).numpy()
        return found_ND


def heard(wave_NT: np.ndarray, spec: AudioSpec) -> np.ndarray:
    """(N, D) features of clips."""
    parts = [_features(log_mels(wave_NT[start : start + 64], spec), spec) for start in range(0, len(wave_NT), 64)]
    return np.concatenate(parts)


def _features(mel_NFM: np.ndarray, spec: AudioSpec) -> np.ndarray:
    return features(mel_NFM, spec.sample_rate_hz / spec.hop_samples)


def likeliest(log_probability_NC: np.ndarray, info: ClassifierInfo) -> tuple[np.ndarray, np.ndarray]:
    """(N,) names twice: the likeliest of the judged classes, and the likeliest of all.

    The first answers "which of these is it?", as listeners of the challenge were asked, and calls even noise something. The
    second may say that it is none of them: all judged classes together have half of the prior chance there, since a clip that
    is judged was meant to be one of them. Training draws classes nearly equally often, which would give seven of forty a sixth.
    """
    judged_C = np.isin(info.classes, info.judged)
    shift = np.log((~judged_C).sum() / judged_C.sum())
    names_C = np.array(info.classes)
    first_N: np.ndarray = names_C[judged_C][log_probability_NC[:, judged_C].argmax(axis=1)]
    second_N: np.ndarray = names_C[(log_probability_NC + shift * judged_C).argmax(axis=1)]
    return first_N, second_N


class Examples:
    """The features of all recordings: as they are, and `copies` augmented versions of those to train on.

    What is mixed into an augmented copy comes from the same class and fold, so that no fold has heard another's recordings.
    """

    def __init__(self, recordings: Sequence[Recording], spec: AudioSpec, copies: int, seed: int, progress: Progress):
        self.names = np.array([row.class_name for row in recordings], dtype=object)
        self.train = np.flatnonzero([row.split == "train" for row in recordings])
        self.held_out = np.flatnonzero([row.split == "eval" for row in recordings])
        self.fold = folds(recordings, seed)
        self.plain_ND = np.concatenate(
            [
                heard(clips([row.wave_T for row in recordings[start : start + 64]], spec), spec)
                for start in range(0, len(recordings), 64)
            ]
        )
        self.copies_KND = np.zeros((copies, len(self.train), self.plain_ND.shape[1]), dtype=np.float32)
        for copy in range(copies):
            for start in range(0, len(self.train), 64):
                rows = self.train[start : start + 64]
                waves = [self._augmented(recordings, row, spec, np.random.default_rng([seed, copy, row])) for row in rows]
                mel_NFM = log_mels(np.stack(waves), spec)
                if copy >= OWN_ROOM_COPIES:
                    mel_NFM = other_room(mel_NFM, np.random.default_rng([seed, copy, start]))
                self.copies_KND[copy, start : start + len(rows)] = _features(mel_NFM, spec)
            progress(f"classifier: {copy + 1} of {copies} augmented copies of {len(self.train)} recordings")

    def training(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features (N, D) and class names (N,) of the chosen train rows (positions in `train`) and their copies."""
        feature_ND = np.concatenate([self.plain_ND[self.train[chosen]], *self.copies_KND[:, chosen]])
        return feature_ND, np.tile(self.names[self.train[chosen]], 1 + len(self.copies_KND))

    def _augmented(self, recordings: Sequence[Recording], row: int, spec: AudioSpec, rng: np.random.Generator) -> np.ndarray:
        mates = self.train[(self.names[self.train] == self.names[row]) & (self.fold[self.train] == self.fold[row])]
        return training_crop(
            recordings[row].wave_T,
            spec.clip_samples,
            spec.sample_rate_hz,
            rng,
            augment=USUAL_AUGMENTATION,
            another=lambda: recordings[int(rng.choice(mates))].wave_T,
        )


def folds(recordings: Sequence[Recording], seed: int) -> np.ndarray:
    """(N,) fold of each row: a class's recordings are dealt out in a drawn order, all rows of one to the same fold."""
    fold_N = np.zeros(len(recordings), dtype=int)
    names = np.array([row.class_name for row in recordings])
    sources = np.array([row.recording for row in recordings])
    for name in np.unique(names):
        distinct = np.random.default_rng([seed, len(name)]).permutation(np.unique(sources[names == name]))
        for place, source in enumerate(distinct):
            fold_N[(names == name) & (sources == source)] = place % FOLDS
    return fold_N


def other_room(mel_NFM: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Log-mels as another microphone might have heard them: a smooth random equaliser, and often a noise floor."""
    count, _, bands = mel_NFM.shape
    at_M = np.linspace(0, 5, bands)
    heard_NFM = mel_NFM + np.stack([np.interp(at_M, np.arange(6), rng.normal(0, 0.7, 6)) for _ in range(count)])[:, None]
    level_N11 = heard_NFM.max(axis=(1, 2), keepdims=True) - rng.uniform(3, 9, (count, 1, 1))
    tilt_NFM = rng.normal(0, 0.8, (count, 1, 1)) * np.linspace(-1, 1, bands) + rng.normal(0, 0.35, mel_NFM.shape)
    noisy_N11 = rng.random((count, 1, 1)) < 0.6
    return np.where(noisy_N11, np.logaddexp(heard_NFM, level_N11 + tilt_NFM), heard_NFM).astype(np.float32)


def train_classifier(
    recordings: Sequence[Recording],
    spec: AudioSpec,
    judged: Sequence[str],
    dataset: str,
    kin: Mapping[str, str] | None = None,
    seed: int = 0,
    copies: int = 8,
    epochs: int = 10,
    progress: Progress = print,
) -> Classifier:
    """Train on the `train` rows of all recordings, and measure on `eval` rows and by cross-validation (`judged` alone).

    A class has its own name if it has at least MIN_ROWS train rows or is judged; the rest are `other`. Rows of a class in
    `kin` bear the name of the judged class they teach, but do not count when that class is measured. Minutes on one core.
    Raises DatasetError if a judged class has no train rows, or `kin` names a class that is not there.
    """
    kin = dict(kin or {})
    strange = sorted((set(kin) - {row.class_name for row in recordings}) | (set(kin.values()) - set(judged)))
    if strange:
        raise DatasetError(f"kin names {', '.join(strange)}: it must lead from a class of the dataset to one that is judged")
    counts = dict.fromkeys(judged, 0)
    for row in recordings:
        name = kin.get(row.class_name, row.class_name)
        counts[name] = counts.get(name, 0) + (row.split == "train")
    empty = [name for name in judged if not counts[name]]
    if empty:
        raise DatasetError(f"no train rows of class {', '.join(empty)} to teach the classifier; leave it out of the prompts")
    own = [name for name in sorted(counts) if counts[name] >= MIN_ROWS or name in judged]
    classes = (*own, OTHER)
    examples = Examples(recordings, spec, copies, seed, progress)
    measured = examples.names.copy()
    for child, name in kin.items():
        examples.names[examples.names == child] = name
    examples.names[~np.isin(examples.names, own)] = OTHER
    everything = np.arange(len(examples.train))
    info = ClassifierInfo(
        spec=spec, classes=classes, judged=tuple(judged), kin=kin, seed=seed, dataset=dataset, train_clips=len(everything)
    )
    net = fit_net(*examples.training(everything), classes, seed, epochs)
    progress("classifier: trained; cross-validating")
    held = _answers(net, examples.plain_ND[examples.held_out], info)
    fold = examples.fold[examples.train]
    crossed = (np.full(len(everything), "", dtype=object), np.full(len(everything), "", dtype=object))
    for number in range(FOLDS):
        inside = fold == number
        if inside.any() and not inside.all():
            part = fit_net(*examples.training(everything[~inside]), classes, seed, epochs, members=1)
            for kept, answer in zip(crossed, _answers(part, examples.plain_ND[examples.train[inside]], info), strict=True):
                kept[inside] = answer
            progress(f"classifier: fold {number + 1} of {FOLDS}")
    info = info.model_copy(
        update={
            "held_out": _right(held, measured[examples.held_out], judged),
            "cross_validated": _right(crossed, measured[examples.train], judged),
        }
    )
    return Classifier(info, net)


def fit_net(
    feature_ND: np.ndarray, names: np.ndarray, classes: Sequence[str], seed: int, epochs: int, members: int = MEMBERS
) -> Net:
    """Perceptrons on standardised features, examples mixed in pairs (arXiv 1710.09412), classes drawn nearly equally often."""
    label_N = torch.from_numpy(np.array([list(classes).index(name) for name in names]))
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Net(feature_ND.shape[1], len(classes), members)
        net.mean.copy_(torch.from_numpy(feature_ND.mean(axis=0)))
        net.spread.copy_(torch.from_numpy(feature_ND.std(axis=0) + 1e-3))
        feature_TD = net.standard(torch.from_numpy(feature_ND))
        weight_N = torch.bincount(label_N, minlength=len(classes))[label_N].double() ** -BALANCE
        batch = min(128, len(label_N))
        steps = max(1, epochs * len(label_N) // batch)
        for member in net.train().members:
            optimiser = torch.optim.AdamW(member.parameters(), lr=PEAK_LR, weight_decay=0.05)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, PEAK_LR, steps)
            for _ in range(steps):
                chosen = torch.multinomial(weight_N, batch, replacement=True, generator=generator)
                partner = chosen[torch.randperm(batch, generator=generator)]
                share = float(np.random.default_rng(int(torch.randint(2**31, (), generator=generator))).beta(0.4, 0.4))
                answer_BC = member(share * feature_TD[chosen] + (1 - share) * feature_TD[partner])
                loss = share * _loss(answer_BC, label_N[chosen]) + (1 - share) * _loss(answer_BC, label_N[partner])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
    return net.eval()


def _loss(answer_BC: Tensor, label_B: Tensor) -> Tensor:
    return nn.functional.cross_entropy(answer_BC, label_B, label_smoothing=0.05)


def _answers(net: Net, feature_ND: np.ndarray, info: ClassifierInfo) -> tuple[np.ndarray, np.ndarray]:
    with torch.inference_mode():
        return likeliest(net(torch.from_numpy(feature_ND)).numpy(), info)


def _right(answers: tuple[np.ndarray, np.ndarray], names: np.ndarray, judged: Sequence[str]) -> dict[str, Right]:
    found = {}
    for name in judged:
        among_judged, among_all = (int((answer[names == name] == name).sum()) for answer in answers)
        found[name] = Right(of=int((names == name).sum()), judged=among_judged, all=among_all)
    return found
