"""Boxes of people: every layout, every number that may be wrong in one, and what is said about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from motarfuse.data.boxes import BoxTable, read_boxes
from motarfuse.errors import DataError

GT = """\
2,7,5,6,10,20,1,1,0.5
1,7,4,6,10,20,1,1,1
1,12,30,6,10,20,1,2,1
1,13,30,6,10,20,0,1,1
3,7,6,6,10,20,1,1,-1
"""


def table(tmp_path: Path, text: str, name: str = "boxes.txt", **options: Any) -> BoxTable:
    (tmp_path / name).write_text(text)
    return read_boxes(tmp_path / name, **options)


def rows(found: BoxTable) -> list[tuple[Any, ...]]:
    return [(one.frame, one.track, one.box, one.visibility) for one in found.boxes]


def test_mot_ground_truth_counts_frames_from_one_and_keeps_people_to_be_considered(tmp_path: Path) -> None:
    found = table(tmp_path, GT)
    assert (found.layout, found.first_frame, found.rows) == ("MOTChallenge text", 1, 5)
    assert rows(found) == [
        (0, "7", (4, 6, 10, 20), 1.0),
        (1, "7", (5, 6, 10, 20), 0.5),
        (2, "7", (6, 6, 10, 20), None),
    ]
    assert found.left_out.counts == {"another class (2)": 1, "confidence 0, not to be considered": 1}
    assert found.left_out.places("another class (2)") == ["line 3"]
    assert "1 visibilities outside [0, 1] are taken as not known" in found.notes
    assert any("class 1" in note for note in found.notes)


def test_the_classes_of_mot_can_be_chosen(tmp_path: Path) -> None:
    assert {one.track for one in table(tmp_path, GT, classes=["2"]).boxes} == {"12"}
    assert {one.track for one in table(tmp_path, GT, classes=["1", "2"]).boxes} == {"7", "12"}


def test_a_trackers_output_has_world_coordinates_where_ground_truth_has_class_and_visibility(tmp_path: Path) -> None:
    found = table(tmp_path, "1,3,1,2,10,20,0.9,4,5,6\n1,4,1,2,10,20,-1,-1,-1,-1\n")
    assert rows(found) == [(0, "3", (1, 2, 10, 20), None), (0, "4", (1, 2, 10, 20), None)]
    assert len(found.left_out) == 0


def test_detections_without_a_track_are_no_tracklets(tmp_path: Path) -> None:
    text = "1,-1,1,2,10,20,0.9\n2,-1,1,2,10,20,0.9\n"
    with pytest.raises(
        DataError, match=r"none of its 2 boxes can be used: 2 x no track \(-1 or empty\).*line 1, line 2"
    ):
        table(tmp_path, text)
    found = table(tmp_path, text + "3,5.0,1,2,10,20,0.9\n")
    assert rows(found) == [(2, "5", (1, 2, 10, 20), None)]


def test_columns_may_be_divided_by_blanks(tmp_path: Path) -> None:
    assert rows(table(tmp_path, " 1 3 1.5 2 10 20\n")) == [(0, "3", (1.5, 2, 10, 20), None)]


@pytest.mark.parametrize(("frames", "first"), [((1, 2), 1), ((5, 2), 1), ((0, 3), 0), ((3, 0), 0)])
def test_a_table_counts_from_zero_where_it_has_a_frame_zero(
    tmp_path: Path, frames: tuple[int, ...], first: int
) -> None:
    text = "frame,track,x,y,w,h\n" + "".join(f"{frame},a,1,2,3,4\n" for frame in frames)
    found = table(tmp_path, text, "a.csv")
    assert (found.layout, found.first_frame) == ("CSV table", first)
    assert [one.frame for one in found.boxes] == sorted(frame - first for frame in frames)
    assert any(f"frames count from {first} in a.csv" in note for note in found.notes)


def test_the_first_frame_can_be_stated(tmp_path: Path) -> None:
    text = "frame,track,x,y,w,h\n1,a,1,2,3,4\n0,a,1,2,3,4\n"
    zero = table(tmp_path, text, first_frame=0)
    assert [one.frame for one in zero.boxes] == [0, 1]
    one = table(tmp_path, text, first_frame=1)
    assert [one.frame for one in one.boxes] == [0]
    assert one.left_out.counts == {"the frame comes before the first one (1)": 1}
    with pytest.raises(DataError, match="the first frame is 2"):
        table(tmp_path, text, first_frame=2)


def test_a_table_has_its_columns_in_any_order_and_by_other_names(tmp_path: Path) -> None:
    text = (
        "\ufefftop;Left;width;height;extra;track_id;frame;visibility;id\n2;1,0;3;4;;anna;1;0.25;9\n2;1;3;4;;ben;2;;9\n"
    )
    found = table(tmp_path, text)
    assert rows(found) == [(1, "ben", (1, 2, 3, 4), None)]
    assert found.left_out.counts == {"frame or box is no number": 1}
    text = "id,frame,x,y,w,h,visibility,class,conf\nanna,1,1,2,3,4,0.25,person,1\nben,1,1,2,3,4,,dog,1\n"
    assert rows(table(tmp_path, text))[0] == (0, "anna", (1, 2, 3, 4), 0.25)
    assert len(table(tmp_path, text).boxes) == 2
    assert len(table(tmp_path, text, classes=["Person"]).boxes) == 1


def test_unused_classes_are_said_to_be_unused(tmp_path: Path) -> None:
    found = table(tmp_path, "1,3,1,2,10,20\n", classes=["1"])
    assert "boxes.txt states no classes: all boxes are kept" in found.notes


BROKEN = {
    "1,a,1,2,3": "the box has fewer than four numbers",
    "1": "the box has fewer than four numbers",
    "x,a,1,2,3,4": "frame or box is no number",
    ",a,1,2,3,4": "frame or box is no number",
    "1,a,1,2,three,4": "frame or box is no number",
    "1,a,nan,2,3,4": "NaN or infinite",
    "1,a,1,2,inf,4": "NaN or infinite",
    "inf,a,1,2,3,4": "NaN or infinite",
    "1.5,a,1,2,3,4": "the frame number is no whole number",
    "-3,a,1,2,3,4": "the frame comes before the first one (1)",
    "1,a,1,2,0,4": "the box has no size",
    "1,a,1,2,3,-4": "the box has no size",
    "1,,1,2,3,4": "no track (-1 or empty): a detection that nobody has tracked",
    "1,nan,1,2,3,4": "no track (-1 or empty): a detection that nobody has tracked",
    "7,a,1,2,3,4": "a second box of the track in the frame",
}


@pytest.mark.parametrize("line", BROKEN)
def test_a_row_that_cannot_be_used_is_counted_and_named(tmp_path: Path, line: str) -> None:
    found = table(tmp_path, f"frame,track,x,y,w,h\n7,a,9,9,9,9\n\n{line}\n8,a,9,9,9,9\n", "a.csv")
    assert [one.frame for one in found.boxes] == [6, 7]
    assert found.left_out.counts == {BROKEN[line]: 1}
    assert found.left_out.places(BROKEN[line])[0].startswith("line 4")


def test_the_first_of_two_boxes_of_a_track_in_a_frame_is_kept(tmp_path: Path) -> None:
    found = table(tmp_path, "2,1,5,5,5,5\n1,1,1,1,1,1\n2,1,6,6,6,6\n2,01,7,7,7,7\n")
    assert rows(found) == [(0, "1", (1, 1, 1, 1), None), (1, "1", (5, 5, 5, 5), None)]
    assert found.left_out.lines() == [
        "2 x a second box of the track in the frame: line 3 (the first: line 1), line 4 (the first: line 1)"
    ]


def test_tracks_are_in_natural_order(tmp_path: Path) -> None:
    assert table(tmp_path, "1,10,1,1,1,1\n1,9,1,1,1,1\n2,2,1,1,1,1\n").tracks == ["2", "9", "10"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b" \n\n", "the file is empty"),
        (b"frame,track,x,y,w,h\n", r"has no box \(read as CSV table\)"),
        (b"frame,track,x,y,w\n1,1,1,1,1", "no column h"),
        (b"\xff\xfe\x00binary", "is no text"),
        (b"{", "is no JSON, or cut off"),
        (b"[]", "is a JSON list"),
        (b'{"images": [], "annotations": []}', "lists no images"),
        (b'{"images": 3}', "images is no list of objects"),
        (b'{"videos": [], "annotations": [{"bboxes": []}]}', "YouTube-VIS"),
    ],
)
def test_a_file_without_boxes_is_an_error_that_names_it(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "boxes.txt").write_bytes(content)
    with pytest.raises(DataError, match=rf"boxes\.txt: .*{message}"):
        read_boxes(tmp_path / "boxes.txt")


def test_a_missing_file_and_a_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_boxes(tmp_path / "none.txt")
    with pytest.raises(DataError, match=r"is a folder.*gt/gt\.txt"):
        read_boxes(tmp_path)


def coco(**changes: Any) -> dict[str, Any]:
    """Two videos of two frames; a person in both frames of the second."""
    content: dict[str, Any] = {
        "videos": [{"id": 1, "name": "train/walk"}, {"id": 2, "name": "run.mp4"}],
        "images": [
            {"id": 10 * video + frame, "video_id": video, "frame_id": frame, "file_name": f"{frame}.jpg"}
            for video in (1, 2)
            for frame in (0, 1)
        ],
        "categories": [{"id": 1, "name": "Pedestrian"}, {"id": 2, "name": "car"}],
        "annotations": [
            {"id": 1, "image_id": 21, "instance_id": 5, "category_id": 1, "bbox": [1, 2, 3, 4], "visibility": 0.5},
            {"id": 2, "image_id": 20, "track_id": 5, "category_id": 1, "bbox": [2, 2, 3, 4]},
            {"id": 3, "image_id": 20, "track_id": 6, "category_id": 2, "bbox": [2, 2, 3, 4]},
            {"id": 4, "image_id": 20, "track_id": 7, "category_id": 1, "bbox": [2, 2, 3, 4], "iscrowd": 1},
            {"id": 5, "image_id": 20, "track_id": 8, "category_id": 1, "bbox": [2, 2, 3]},
            {"id": 6, "image_id": 20, "category_id": 1, "bbox": [2, 2, 3, 4]},
            {"id": 7, "image_id": 99, "track_id": 5, "category_id": 1, "bbox": [2, 2, 3, 4]},
            {"id": 8, "image_id": 10, "track_id": 5, "category_id": 1, "bbox": [0, 0, 9, 9]},
            {"id": 9, "image_id": 20, "track_id": 9, "category_id": 1, "bbox": None},
            {"id": 11, "image_id": 20, "track_id": 9, "category_id": 1, "bbox": [1, True, 3, 4]},
        ],
    }
    return content | changes


def test_coco_video_boxes_are_those_of_one_video(tmp_path: Path) -> None:
    found = table(tmp_path, json.dumps(coco()), "coco.json", video="run")
    assert (found.layout, found.first_frame) == ("COCO-video JSON", 0)
    assert rows(found) == [(0, "5", (2, 2, 3, 4), None), (1, "5", (1, 2, 3, 4), 0.5)]
    assert found.left_out.counts == {
        "another class (car)": 1,
        "a crowd, not one person (iscrowd)": 1,
        "the box has fewer than four numbers": 2,
        "no track (-1 or empty): a detection that nobody has tracked": 1,
        "the image of the annotation is not listed": 1,
        "frame or box is no number": 1,
    }
    assert found.left_out.places("another class (car)") == ["annotation 3"]
    for name in ("walk", "train/walk", "1"):
        assert rows(table(tmp_path, json.dumps(coco()), video=name)) == [(0, "5", (0, 0, 9, 9), None)]


def test_coco_classes_are_chosen_by_name_or_number(tmp_path: Path) -> None:
    for name in ("car", "2", "CAR"):
        assert {one.track for one in table(tmp_path, json.dumps(coco()), video="2", classes=[name]).boxes} == {"6"}
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "car"}]
    with pytest.raises(DataError, match=r"none of its categories \(car, cat\) is called person or pedestrian"):
        table(tmp_path, json.dumps(coco(categories=categories)), video="2")


def test_it_must_be_clear_which_coco_video_is_meant(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"holds 2 videos; say which one \(--coco-video\): 1 \(train/walk\), 2 \(run.mp4\)"
    ):
        table(tmp_path, json.dumps(coco()))
    with pytest.raises(DataError, match="none of its videos is called 'swim'"):
        table(tmp_path, json.dumps(coco()), video="swim")


def test_coco_images_that_count_from_one_say_so(tmp_path: Path) -> None:
    images = [{"id": 20, "video_id": 2, "frame_id": 1}, {"id": 21, "video_id": 2, "frame_id": 2}]
    found = table(tmp_path, json.dumps(coco(images=images, videos=[])))
    assert (found.first_frame, [one.frame for one in found.boxes]) == (1, [0, 1])
    images[1]["frame_id"] = None  # type: ignore[assignment]
    with pytest.raises(DataError, match="image 21 has no whole number as frame_id or frame_index"):
        table(tmp_path, json.dumps(coco(images=images, videos=[])))


@pytest.mark.real_data
def test_the_real_tracks_are_read(real_data: Path) -> None:
    found = read_boxes(real_data / "intel-one-by-one" / "tracks.csv")
    assert (len(found.boxes), found.tracks, len(found.left_out)) == (1027, [str(n) for n in range(1, 7)], 0)
    assert (found.first_frame, found.boxes[0].frame, found.boxes[-1].frame) == (1, 61, 1351)
