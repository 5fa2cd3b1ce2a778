"""Clotho and WavCaps, in the form of the published tables."""

import json

import pytest
from sounds import lay_out

from foley_ray.data.manifest import Reason
from foley_ray.data.sources import read_source
from foley_ray.errors import SourceError

CAPTIONS = """file_name,caption_1,caption_2,caption_3,caption_4,caption_5
Radio Garble.wav,A radio dispatcher and an officer.,Static.,"A walkie-talkie, talking.",People talk.,Static.
FR.CTC.08.001.wav,a,b,c,d,e
"""
METADATA = """file_name,keywords,sound_id,sound_link,start_end_samples,manufacturer,license
Radio Garble.wav,police;radio,80399,https://freesound.org/people/Benboncan/sounds/80399,"[1024, 845524]",Jos\xe9,http://creativecommons.org/licenses/by/3.0/
FR.CTC.08.001.wav,bugs,Not found,Not found,,someone,http://creativecommons.org/licenses/by-nc/3.0/
"""


def test_clotho_has_five_captions_a_file_and_the_licences_of_its_metadata(tmp_path):
    names = ["development/Radio Garble.wav", "development/FR.CTC.08.001.wav", "evaluation/Radio Garble.wav"]
    lay_out(
        tmp_path,
        dict.fromkeys(names)
        | {"clotho_captions_development.csv": CAPTIONS, "clotho_captions_evaluation.csv": CAPTIONS}
        | {"clotho_metadata_development.csv": METADATA.encode("latin-1")},  # as it is published
    )
    layout, (first, second, third, fourth) = read_source(tmp_path)
    assert layout == "clotho: clotho_captions_development.csv, clotho_captions_evaluation.csv"
    assert [row.place.name for row in (first, second, third)] == names
    assert first.captions == ("A radio dispatcher and an officer.", "Static.", "A walkie-talkie, talking.", "People talk.")
    assert (first.split, first.licence, first.author, first.shippable) == ("train", "CC BY 3.0", "José", True)
    assert (first.recording, first.class_name) == ("freesound:80399", None)
    assert (second.licence, second.shippable, second.recording) == ("CC BY-NC 3.0", False, "development/FR.CTC.08.001")
    assert (third.split, third.licence, third.shippable) == ("eval", "", False)  # its own metadata is not there
    assert fourth.fault is None  # the other folder's file of that name: nearer is none
    (tmp_path / names[1]).unlink()
    gone = read_source(tmp_path)[1][1]
    assert gone.fault == (Reason.MISSING, "no sound file is called 'FR.CTC.08.001.wav', of clotho_captions_development.csv")


def wavcaps(*entries):
    return json.dumps({"num_captions_per_audio": 1, "data": list(entries)})


def test_wavcaps_finds_sounds_by_id_in_the_folder_of_their_origin(tmp_path):
    soundbible = {
        "title": "Airplane Landing Airport", "description": "Large commercial airplane.", "author": "Daniel Simion",
        "href": "2219-Airplane.html", "caption": "An airplane is landing.", "id": "2219", "duration": 14.14,
        "audio": "wav_path", "download_link": "http://soundbible.com/grab.php?id=2219&type=wav",
    }  # fmt: skip
    audioset = {"id": "Yb0RFKhbpFJA.wav", "caption": "Wind and a man speaking.", "audio": "wav_path", "duration": 10.0}
    gone = {"id": 77, "caption": "Gone.", "audio": "wav_path", "duration": 1.0}
    lay_out(
        tmp_path,
        {
            "json_files/SoundBible/sb_final.json": wavcaps(soundbible, gone, 3),
            "json_files/AudioSet_SL/as_final.json": wavcaps(audioset),
            "json_files/blacklist/blacklist_exclude_all_ac.json": '{"FreeSound": ["2219"]}',
            "FreeSound_flac/2219.flac": None,
            "SoundBible_flac/2219.flac": None,
            "AudioSet_SL_flac/Yb0RFKhbpFJA.flac": None,
        },
    )
    layout, (wind, plane, missing, nothing) = read_source(tmp_path)
    assert layout == "wavcaps: json_files/AudioSet_SL/as_final.json, json_files/SoundBible/sb_final.json"
    assert (wind.place.name, wind.caption) == ("AudioSet_SL_flac/Yb0RFKhbpFJA.flac", "Wind and a man speaking.")
    assert (plane.place.name, plane.author) == ("SoundBible_flac/2219.flac", "Daniel Simion")
    assert {(row.licence, row.shippable) for row in (wind, plane)} == {("academic use only (WavCaps)", False)}
    assert missing.fault == (Reason.MISSING, "no sound file is called 77 or wav_path, of json_files/SoundBible/sb_final.json")
    assert nothing.fault


def test_wavcaps_json_with_five_captions(tmp_path):
    entry = {f"caption_{n}": f"caption {n}" for n in range(1, 6)} | {
        "wav": "AudioCaps/val/YvfY_TJq7n_U.wav",
        "audio": "/mnt/x.wav",
    }
    lay_out(tmp_path, {"val.json": json.dumps({"data": [entry]}), "YvfY_TJq7n_U.wav": None})
    (row,) = read_source(tmp_path)[1]
    assert row.captions == tuple(f"caption {n}" for n in range(1, 6))


def test_a_forced_layout_that_does_not_fit_says_what_it_is(tmp_path):
    lay_out(tmp_path, {"a.json": '{"data": [{"id": 1, "caption": '})
    with pytest.raises(SourceError, match=r"cannot read .*a\.json"):
        read_source(tmp_path, "wavcaps")
    with pytest.raises(SourceError, match=r"looked for clotho_captions_\*\.csv with .* \(clotho\); it has 1 files"):
        read_source(tmp_path, "clotho")
