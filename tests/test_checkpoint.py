import json
import shutil
from pathlib import Path

import pytest
import torch

from foley_ray.checkpoint import PARTS, ModelInfo, PartInfo, assemble, load_part, read_info, save_model, shipped_model
from foley_ray.errors import ModelError, OutputError
from foley_ray.models.tuning import Tuning
from foley_ray.models.vae import build_vae
from foley_ray.presets import tiny


def part_folder(tmp_path: Path, name: str, made_for: dict | None = None, seed: int = 0) -> Path:
    """A model folder with a tuning layer or a VAE alone."""
    torch.manual_seed(seed)
    config = tiny().model
    part = Tuning(config.tuning, config.clap.embed_dim) if name == "tuning" else build_vae(config)
    info = ModelInfo(preset="tiny", model=config, parts={name: PartInfo(digest="", made_for=made_for or {})})
    save_model(tmp_path, info, {name: part})
    return tmp_path


def test_every_part_survives_the_round_trip(tiny_model: Path) -> None:
    info = read_info(tiny_model, needs=PARTS)
    again = tiny_model.with_name("again")
    parts = {name: load_part(tiny_model, name) for name in PARTS}
    copy = save_model(again, info, parts)
    assert info.originals
    assert copy == info.model_copy(update={"originals": None})  # a new folder was never given them
    assert copy.digest != info.digest
    for name in PARTS:
        ours, theirs = parts[name].state_dict(), load_part(again, name).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_parts_load_with_diffusers_alone(tiny_model: Path) -> None:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    assert UNet2DConditionModel.from_pretrained(tiny_model / "unet").config["class_embed_type"] == "simple_projection"
    assert AutoencoderKL.from_pretrained(tiny_model / "vae").config["scaling_factor"] == 0.7
    assert DDIMScheduler.from_pretrained(tiny_model / "scheduler").config["steps_offset"] == 1


def test_no_part_tells_where_it_was_loaded_from(tiny_model: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "again", read_info(tiny_model), {name: load_part(tiny_model, name) for name in PARTS})
    for folder in (tmp_path / "again", shipped_model()):
        assert "_name_or_path" not in "".join(path.read_text() for path in folder.rglob("*.json")), folder


def test_no_pickles_and_readable_by_others(tiny_model: Path) -> None:
    files = [path for path in tiny_model.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in files)


def test_the_digest_changes_with_any_weight_and_with_nothing_else(tmp_path: Path) -> None:
    first = read_info(part_folder(tmp_path / "a", "vae", seed=1)).digest
    assert read_info(part_folder(tmp_path / "b", "vae", seed=1)).digest == first
    assert read_info(part_folder(tmp_path / "c", "vae", seed=2)).digest != first


def test_assemble_takes_the_later_of_two(tmp_path: Path) -> None:
    old, new = part_folder(tmp_path / "old", "vae", seed=1), part_folder(tmp_path / "new", "vae", seed=2)
    info = assemble([old, new, part_folder(tmp_path / "t", "tuning")], tmp_path / "out")
    assert info.parts["vae"].digest == read_info(new).parts["vae"].digest
    assert set(info.parts) == {"vae", "tuning"}


def test_what_a_unet_learned_before_stays_known_beside_what_its_folder_tells_of(tiny_model: Path, tmp_path: Path) -> None:
    taught = {"rain": ("heavy rain",), "dog_bark": ("an old wording",)}
    told = read_info(tiny_model).sounds
    assert assemble([tiny_model], tmp_path / "a", taught=taught).sounds == {**taught, **told}
    assert assemble([tiny_model], tmp_path / "b").sounds == told


def test_parts_made_for_others_are_refused(tmp_path: Path) -> None:
    vae = part_folder(tmp_path / "vae", "vae")
    tuning = part_folder(tmp_path / "tuning", "tuning", made_for={"vae": "0" * 16})
    with pytest.raises(ModelError, match=r"do not fit each other: tuning was trained with vae 0000000000000000"):
        assemble([vae, tuning], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_part_may_take_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    vae = part_folder(tmp_path / "vae", "vae")
    tuning = part_folder(tmp_path / "tuning", "tuning", made_for={"vae": "0" * 16})
    content = json.loads((vae / "foley.json").read_text())
    content["parts"]["vae"]["stands_for"] = ["1" * 16, "0" * 16]
    (vae / "foley.json").write_text(json.dumps(content))
    info = assemble([vae, tuning], tmp_path / "out", half=True)
    assert info.parts["vae"].serves(info.parts["tuning"].made_for["vae"])
    assert not info.parts["vae"].serves("2" * 16)


def edit(folder: Path, section: str, key: str, value: object) -> None:
    content = json.loads((folder / "foley.json").read_text())
    content["model"][section][key] = value
    (folder / "foley.json").write_text(json.dumps(content))


def test_settings_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    vae, other = part_folder(tmp_path / "vae", "vae"), part_folder(tmp_path / "other", "tuning")
    edit(other, "audio", "fmax_hz", 7000.0)
    with pytest.raises(ModelError, match="measure sound differently"):
        assemble([vae, other], tmp_path / "out")


def test_each_part_brings_its_own_settings(tmp_path: Path) -> None:
    vae, other = part_folder(tmp_path / "vae", "vae"), part_folder(tmp_path / "other", "tuning")
    edit(other, "vae", "layers_per_block", 2)  # nothing to do with the part that this folder gives
    assert assemble([vae, other], tmp_path / "out").model.vae == tiny().model.vae


def test_half_precision_halves_the_size_and_stays_one_model(tiny_model: Path, tmp_path: Path) -> None:
    made_for = {"vae": read_info(tiny_model).parts["vae"].digest}
    tuning = part_folder(tmp_path / "tuning", "tuning", made_for=made_for)
    info = assemble([tiny_model, tuning], tmp_path / "half", half=True)
    assert info.parts["tuning"].made_for["vae"] == info.parts["vae"].digest != made_for["vae"]
    read_info(tmp_path / "half", needs=PARTS)
    for name in PARTS:
        ours, theirs = load_part(tiny_model, name).state_dict(), load_part(tmp_path / "half", name).state_dict()
        assert all(theirs[key].dtype == ours[key].dtype for key in ours)
        assert all(torch.allclose(ours[key].float(), theirs[key].float(), rtol=1e-2, atol=1e-3) for key in ours)
    full, half = (
        sum(path.stat().st_size for path in folder.rglob("*.safetensors")) for folder in (tiny_model, tmp_path / "half")
    )
    assert half < 0.55 * full


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: shutil.rmtree(folder), "no model folder at"),
        (lambda folder: (folder / "foley.json").unlink(), "is no model folder: it has no foley.json"),
        (lambda folder: (folder / "foley.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "foley.json").write_text('{"preset": "tiny"}'), "model"),
    ],
)
def test_folders_that_are_no_model_say_so(tmp_path: Path, spoil, said: str) -> None:
    folder = part_folder(tmp_path / "m", "vae")
    spoil(folder)
    with pytest.raises(ModelError, match=said):
        read_info(folder)


def test_missing_parts_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"lacks clap, unet \(it has: vae\)"):
        read_info(part_folder(tmp_path / "m", "vae"), needs=("clap", "unet", "vae"))


def test_a_damaged_part_is_a_model_error(tmp_path: Path) -> None:
    folder = part_folder(tmp_path / "m", "vae")
    weights = next((folder / "vae").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match="part vae of"):
        load_part(folder, "vae")


def test_weights_that_are_missing_are_an_error_not_random_numbers(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = part_folder(tmp_path / "m", "vae")
    path = next((folder / "vae").glob("*.safetensors"))
    weights = load_file(path)
    weights.pop("decoder.conv_out.weight")
    save_file(weights, path)
    with pytest.raises(ModelError, match=r"lacks weights \['decoder.conv_out.weight'\]"):
        load_part(folder, "vae")


def test_a_truncated_tuning_layer_is_a_model_error(tmp_path: Path) -> None:
    folder = part_folder(tmp_path / "m", "tuning")
    path = folder / "tuning" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ModelError, match="part tuning of"):
        load_part(folder, "tuning")


def test_a_folder_of_something_else_is_never_replaced(tmp_path: Path) -> None:
    precious = tmp_path / "documents"
    precious.mkdir()
    (precious / "novel.txt").write_text("chapter one")
    with pytest.raises(OutputError, match="exists and is no model folder"):
        part_folder(precious, "vae")
    assert (precious / "novel.txt").read_text() == "chapter one"


def test_nothing_half_written_when_a_part_cannot_be_saved(tmp_path: Path) -> None:
    class Full:
        def save_pretrained(self, place: Path, **_: object) -> None:
            place.mkdir()
            raise OSError(28, "No space left on device")

    info = ModelInfo(preset="tiny", model=tiny().model)
    with pytest.raises(OutputError, match="No space left on device"):
        save_model(tmp_path / "m", info, {"vae": Full()})
    assert list(tmp_path.iterdir()) == []
