"""`foley score` from its arguments to its files: read, find or train the classifier, score, write."""

from collections.abc import Callable, Mapping
from pathlib import Path

from foley_ray.checkpoint import PARTS, read_info
from foley_ray.config import ClipSettings
from foley_ray.data.captions import read_captions
from foley_ray.data.manifest import load_info
from foley_ray.errors import ModelError
from foley_ray.evaluation.classifier import INFO_FILE, Classifier, train_classifier
from foley_ray.evaluation.recordings import read_recordings
from foley_ray.evaluation.report import write_report
from foley_ray.evaluation.score import Numbers, Real, score
from foley_ray.generate import check_writable
from foley_ray.spec import AudioSpec


def run(
    model: Path,
    data: Path,
    prompts: Path,
    out: Path,
    classifier: Path | None = None,
    kin: Mapping[str, str] | None = None,
    count: int = 10,
    seed: int = 0,
    settings: ClipSettings | None = None,
    whole: bool = True,
    progress: Callable[[str], None] = print,
) -> Numbers:
    """Score a model folder and write OUT. Raises ModelError, DatasetError, SourceError or OutputError, before hours of work."""
    # an incomplete model should not cost the minutes that a classifier takes
    info = read_info(model, needs=[name for name in PARTS if name != "tuning"] if whole else [])
    wordings = read_captions(prompts)
    check_writable(out)
    spec = info.model.audio
    judge = judge_for(data, spec, tuple(wordings), classifier or out / "classifier", kin or {}, progress)
    rows = read_recordings(data, spec, wordings)
    learned = info.parts["unet"].training if "unet" in info.parts else {}
    shippable_only = bool(learned.get("shippable_only"))
    real = {name: Real.of([row for row in rows if row.class_name == name], spec, shippable_only) for name in wordings}
    report, made, rebuilt = score(model, real, wordings, judge, out, count, seed, settings, whole, progress)
    write_report(out, report, made, real, rebuilt, spec)
    return report


def judge_for(
    data: Path, spec: AudioSpec, judged: tuple[str, ...], folder: Path, kin: Mapping[str, str], progress: Callable[[str], None]
) -> Classifier:
    """The classifier in a folder, or if there is none one trained and saved there.

    Raises ModelError if the one there was trained on another dataset, for other classes, or hears differently: scores of two
    yardsticks must not be compared by accident.
    """
    digest = load_info(data).digest
    if not (folder / INFO_FILE).is_file():
        judge = train_classifier(read_recordings(data, spec), spec, judged, digest, kin, progress=progress)
        judge.save(folder)
        return judge
    judge = Classifier.load(folder)
    for what, found, wanted in (
        ("dataset", judge.info.dataset[:12], digest[:12]),
        ("classes", judge.info.judged, judged),
        ("kin", judge.info.kin, dict(kin)),
        ("audio settings", judge.spec, spec),
    ):
        if found != wanted:
            raise ModelError(
                f"the classifier in {folder} has {what} {found}, not {wanted}; give another --classifier folder to train anew"
            )
    return judge
