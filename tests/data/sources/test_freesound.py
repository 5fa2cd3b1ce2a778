"""Freesound's API and packs, and FSD50K, in the form in which they are published."""

import json

import pytest
from sounds import lay_out

from foley_ray.data.manifest import Reason
from foley_ray.data.sources import read_source

BARK = {
    "id": 387682, "url": "https://freesound.org/people/Jagadamba/sounds/387682/", "name": "Closing_drawer-01.wav",
    "tags": ["drawer", "wood-creak"], "username": "Jagadamba", "license": "http://creativecommons.org/licenses/by/3.0/",
    "description": "An old drawer <a href='x'>closes</a> slowly. Recorded with a Zoom H4n.", "type": "wav", "duration": 2.1,
}  # fmt: skip
RAIN = BARK | {"id": 95332, "name": "rain", "tags": [], "description": "", "username": "ramas26",
               "license": "https://creativecommons.org/licenses/by-nc/4.0/"}  # fmt: skip
PACK = """Sound pack downloaded from Freesound
----------------------------------------

"Kitchen"

This pack of sounds contains sounds by the following user:
 - Jagadamba ( https://freesound.org/people/Jagadamba/ )

You can find this pack online at: https://freesound.org/people/Jagadamba/packs/15564/

{header}

Attribution: http://creativecommons.org/licenses/by/3.0/
Attribution Noncommercial: http://creativecommons.org/licenses/by-nc/3.0/


Sounds in this pack
-------------------

  * 387682__jagadamba__closing-drawer.wav
    * url: https://freesound.org/s/387682/
    * license: Attribution
  * 254639__jagadamba__pots-and_pans-02.wav
    * url: https://freesound.org/s/254639/
    * license: Attribution Noncommercial
  * 254640__jagadamba__07.wav
    * url: https://freesound.org/s/254640/
    * license: Some New Licence
"""


@pytest.mark.parametrize("form", ["list", "page", "by number", "file per sound", "lines", "csv"])
def test_the_api_in_every_form_people_save_it(tmp_path, form):
    table = "id,name,tags,description,license,username\n" + "".join(
        f'{s["id"]},{s["name"]},"{s["tags"]}","{s["description"]}",{s["license"]},{s["username"]}\n' for s in (BARK, RAIN)
    )
    files = {
        "list": {"sounds.json": json.dumps([BARK, RAIN])},
        "page": {"page_1.json": json.dumps({"count": 2, "next": None, "results": [BARK, RAIN]})},
        "by number": {"all.json": json.dumps({"387682": BARK, "95332": RAIN}, indent=2)},
        "file per sound": {"387682.json": json.dumps(BARK), "95332.json": json.dumps(RAIN)},
        "lines": {"sounds.jsonl": json.dumps(BARK) + "\n" + json.dumps(RAIN) + "\n"},
        "csv": {"sounds.csv": table},
    }[form]
    lay_out(tmp_path, files | {"sounds/387682.wav": None, "sounds/rain.wav": None})
    layout, (first, second) = read_source(tmp_path)
    assert layout.startswith("freesound: ")
    assert first.place.name == "sounds/387682.wav"
    assert first.captions == ("Closing drawer 01", "An old drawer closes slowly.", "drawer, wood creak")
    assert (first.licence, first.author, first.shippable) == ("CC BY 3.0", "Jagadamba", True)
    assert first.recording == "freesound:387682"
    assert (second.place.name, second.captions, second.shippable) == ("sounds/rain.wav", ("rain",), False)


def test_a_name_that_two_sounds_have_means_neither(tmp_path):
    lay_out(
        tmp_path, {"sounds.json": json.dumps([RAIN, RAIN | {"id": 2}, RAIN | {"id": 3}]), "rain.wav": None, "3_rain.wav": None}
    )
    assert [bool(row.fault) for row in read_source(tmp_path)[1]] == [True, True, False]


def test_a_broken_file_among_many_is_a_faulty_row(tmp_path):
    lay_out(tmp_path, {"1.json": json.dumps(BARK | {"id": 1}), "2.json": '{"id": 2, "name"', "1.wav": None})
    broken, good = sorted(read_source(tmp_path)[1], key=lambda row: row.fault is None)
    assert (broken.source, broken.fault[0], good.fault) == ("2.json", Reason.CORRUPT, None)


@pytest.mark.parametrize("header", ["License details", "Licenses in this pack (see below for individual sound licenses)"])
def test_packs_state_a_licence_per_sound(tmp_path, header):
    names = ["387682__jagadamba__closing-drawer.wav", "254639__jagadamba__pots-and_pans-02.wav", "254640__jagadamba__07.wav"]
    note = PACK.format(header=f"{header}\n{'-' * len(header)}")
    lay_out(tmp_path, {"kitchen/_readme_and_license.txt": note} | {f"kitchen/{name}": None for name in names})
    layout, (drawer, pots, seven) = read_source(tmp_path)
    assert layout == "freesound: kitchen/_readme_and_license.txt"
    assert (drawer.place.name, drawer.caption) == (f"kitchen/{names[0]}", "closing drawer")
    assert (drawer.author, drawer.licence, drawer.shippable) == ("Jagadamba", "CC BY 3.0", True)
    assert (pots.caption, pots.licence, pots.shippable) == ("pots and pans 02", "CC BY-NC 3.0", False)
    assert (seven.captions, seven.licence, seven.shippable) == ((), "Some New Licence", False)


DEV = """fname,labels,mids,split
64760,"Electric_guitar,Guitar,Plucked_string_instrument,Musical_instrument,Music","/m/02sgy,/m/0342h,/m/0fx80y,/m/04szw,/m/04rlf",train
16399,"Chirp_and_tweet,Bird_vocalization_and_bird_call_and_bird_song","/m/07pggtn,/m/020bb7",val
1,"Rain","/m/06mb1",train
"""
CLIPS = {
    "64760": {"title": "guitar.wav", "description": "x", "tags": ["guitar"],
              "license": "http://creativecommons.org/licenses/sampling+/1.0/", "uploader": "casualsamples"},
    "16399": {"title": "Birds", "description": "x", "tags": [],
              "license": "http://creativecommons.org/publicdomain/zero/1.0/", "uploader": "inchadney"},
}  # fmt: skip


def test_fsd50k(tmp_path):
    lay_out(
        tmp_path,
        {
            "FSD50K.ground_truth/dev.csv": DEV,
            "FSD50K.ground_truth/eval.csv": 'fname,labels,mids\n37199,"Rain,Water","/m/06mb1,/m/0838f"\n',
            "FSD50K.ground_truth/vocabulary.csv": "0,Accelerating_and_revving_and_vroom,/m/07q2z82\n",
            "FSD50K.metadata/collection/collection_dev.csv": 'fname,labels,mids\n64760,"Electric_guitar","/m/02sgy"\n',
            "FSD50K.metadata/dev_clips_info_FSD50K.json": json.dumps(CLIPS),
            "FSD50K.dev_audio/64760.wav": None,
            "FSD50K.dev_audio/16399.wav": None,
            "FSD50K.eval_audio/37199.wav": None,
        },
    )
    layout, (guitar, birds, gone, rain) = read_source(tmp_path)
    assert layout == "fsd50k: FSD50K.ground_truth/dev.csv, FSD50K.ground_truth/eval.csv"
    assert (guitar.place.name, guitar.class_name, guitar.caption) == (
        "FSD50K.dev_audio/64760.wav",
        "electric_guitar",
        "electric guitar",
    )
    assert (guitar.licence, guitar.author, guitar.shippable) == ("CC Sampling+ 1.0", "casualsamples", False)
    assert (birds.licence, birds.author, birds.shippable, birds.split) == ("CC0 1.0", "inchadney", True, "eval")
    assert birds.caption == "chirp and tweet, bird vocalization and bird call and bird song"
    assert gone.fault == (Reason.MISSING, "no sound file is called 1, of FSD50K.ground_truth/dev.csv")
    assert (guitar.split, rain.split, rain.caption, rain.licence) == ("train", "eval", "rain, water", "")
    assert rain.recording == "freesound:37199"
