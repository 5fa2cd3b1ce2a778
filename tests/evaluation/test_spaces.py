from pathlib import Path

import pytest

from foley_ray.errors import ConfigError
from foley_ray.evaluation.spaces import check_space

FILE = Path("w.pth")


@pytest.mark.parametrize(
    ("space", "classifier", "weights"),
    [("clap", None, None), ("clap", FILE, None), ("classifier", FILE, None), ("vggish", None, FILE), ("panns", FILE, FILE)],
)
def test_what_fits_passes(space: str, classifier: Path | None, weights: Path | None) -> None:
    check_space(space, classifier, weights)


@pytest.mark.parametrize(
    ("space", "weights", "told"),
    [
        ("vgg", None, "must be clap, classifier, vggish or panns"),
        ("classifier", None, "needs a --classifier"),
        ("vggish", None, "needs --weights FILE: vggish-10086976.pth.*harritaylor/torchvggish"),
        ("panns", None, "needs --weights FILE: .*qiuqiangkong/audioset_tagging_cnn"),
        ("clap", FILE, "--weights w.pth goes with --space vggish or panns, not clap"),
    ],
)
def test_what_does_not_fit_is_told(space: str, weights: Path | None, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check_space(space, None, weights)
