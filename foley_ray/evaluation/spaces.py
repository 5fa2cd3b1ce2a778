"""The spaces that `foley evaluate` measures in and what each needs of the user, checked before any network is loaded."""

from pathlib import Path

from foley_ray.errors import ConfigError

PUBLISHED = {
    "vggish": "vggish-10086976.pth, among the releases of harritaylor/torchvggish",
    "panns": "Cnn14_mAP=0.431.pth (32 kHz) or Cnn14_16k_mAP=0.438.pth, which qiuqiangkong/audioset_tagging_cnn keeps on Zenodo",
}
"""Networks that published figures use, and where their weights are: not here, for they are not ours to pass on."""


def check_space(space: str, classifier: Path | None, weights: Path | None) -> None:
    """Raises ConfigError for a space that does not exist, lacks its classifier or weights, or has no use for the weights."""
    if space not in ("clap", "classifier", *PUBLISHED):
        raise ConfigError(f"--space {space} must be clap, classifier, {' or '.join(PUBLISHED)}")
    if space == "classifier" and classifier is None:
        raise ConfigError("--space classifier needs a --classifier folder")
    if space in PUBLISHED and weights is None:
        raise ConfigError(f"--space {space} needs --weights FILE: {PUBLISHED[space]}")
    if space not in PUBLISHED and weights is not None:
        raise ConfigError(f"--weights {weights} goes with --space {' or '.join(PUBLISHED)}, not {space}; leave it out")
