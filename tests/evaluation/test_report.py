"""A report is one self-contained page; a summary is plain JSON that refuses what JSON cannot say."""

import base64
import html.parser
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam_jax.evaluation import media, report
from wam_jax.evaluation.report import Report, environment, read_summary, write_summary
from wam_jax.evaluation.statistics import Difference, Rate

PIXELS = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)


class Page(html.parser.HTMLParser):
    """What a browser would see: tags with attributes in order, and the text."""

    def __init__(self, source: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip() and self.open[-1] != "style":
            self.text.append(data.strip())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Page:
    page = Report("Reach <the> target", "seed 0")
    page.add_figures({"success": Rate(253, 256), "parameters": 1_134_080, "loss": 0.123456, "note": None})
    page.add_text("What", "First & foremost.\n\n<script>alert(1)</script>")
    page.add_table(
        "Arms",
        ["arm", "success", "n", "error"],
        [["joint", Rate(1, 2), 2, "0.5"], ["none", None, np.int64(30_000), "-1"]],
    )
    page.add_image("Start", media.picture(PIXELS), "frame 0")
    page.add_films("Films", [(media.film(np.stack([PIXELS, 255 - PIXELS]), 8), "success"), (media.picture(PIXELS), "")])
    path = page.write(tmp_path_factory.mktemp("run") / "new")
    assert path.name == "report.html"
    assert os.listdir(path.parent) == ["report.html"]
    return Page(path.read_text(encoding="utf-8"))


def test_every_element_is_closed(page):
    assert page.open == []


def test_page_asks_nothing_of_the_network_and_runs_no_script(page):
    assert page.all("script") == []
    assert page.all("link") == []
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        assert attributes.get("src", "data:").startswith("data:")
        assert attributes.get("href", "#").startswith("#")
    policy = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_text_is_escaped_and_divided_into_paragraphs(page):
    assert page.text.count("Reach <the> target") == 2  # title and headline
    assert "First & foremost." in page.text
    assert "<script>alert(1)</script>" in page.text


def test_sections_keep_their_order_and_the_contents_link_to_them(page):
    headings = ["What", "Arms", "Start", "Films"]
    anchors = [link["href"] for link in page.all("a")]
    assert page.text[3:7] == headings
    assert [text for text in page.text[7:] if text in headings] == headings
    sections = [f"#{section['id']}" for section in page.all("section")]
    assert anchors == sections[1:]  # the first section has no heading


def test_figures_show_rates_with_their_interval_beside(page):
    assert page.text[page.text.index("success") + 1 :][:2] == [".988", "[.966, .996]"]
    assert page.text[page.text.index("parameters") + 1] == "1,134,080"
    assert page.text[page.text.index("loss") + 1] == "0.1235"
    assert page.text[page.text.index("note") + 1] == "–"


def test_number_columns_are_set_right(page):
    assert [cell.get("class") for cell in page.all("th")] == [None, "number", "number", "number"]
    assert [cell.get("class") for cell in page.all("td")] == [None, "number", "number", "number"] * 2
    assert "30,000" in page.text


def test_images_are_inside_the_page_unchanged(page):
    sources = [image["src"].split(",", 1) for image in page.all("img")]
    assert [kind for kind, _ in sources] == [f"data:image/{name};base64" for name in ("png", "webp", "png")]
    assert base64.b64decode(sources[0][1]) == media.picture(PIXELS)
    assert [(image["width"], image["height"], image["alt"]) for image in page.all("img")] == [
        ("5", "4", "frame 0"),
        ("5", "4", "success"),
        ("5", "4", "Films"),
    ]


def test_footer_names_the_machine(page):
    footer = page.text[-1]
    assert footer.startswith(f"{jax.device_count()} × {jax.devices()[0].device_kind} · ")
    assert f"jax {jax.__version__}" in footer


def test_bytes_that_are_no_image_are_refused():
    with pytest.raises(ValueError, match=r"^section 'Start': image starts with b'GIF8'; give PNG or WebP bytes"):
        Report("x").add_image("Start", b"GIF89a")


def test_uneven_tables_are_refused():
    with pytest.raises(ValueError, match=r"^table 'Arms': row \['joint'\] has 1 cells for 2 columns$"):
        Report("x").add_table("Arms", ["arm", "success"], [["joint"]])


def test_summary_returns_as_plain_values(tmp_path):
    summary = {
        "success": {"reach": Rate(1, 2), "gain": Difference(0.5, (0.25, 0.75), 8)},
        "loss": np.float32(0.5),
        "steps": jnp.int32(7),
        "per_step": np.arange(3),
        "done": np.bool_(True),
        "where": pathlib.PurePosixPath("runs/a"),
        "missing": None,
        "size": (1, 2),
    }
    path = write_summary(tmp_path / "run", summary)
    assert path == tmp_path / "run" / "summary.json"
    read = read_summary(tmp_path / "run")
    assert read.pop("environment") == environment()
    low, high = Rate(1, 2).ci95
    assert read == {
        "success": {
            "reach": {"rate": 0.5, "ci95": [low, high], "successes": 1, "n": 2},
            "gain": {"difference": 0.5, "ci95": [0.25, 0.75], "n": 8},
        },
        "loss": 0.5,
        "steps": 7,
        "per_step": [0, 1, 2],
        "done": True,
        "where": "runs/a",
        "missing": None,
        "size": [1, 2],
    }


def test_summary_is_sorted_and_read_back_by_file_or_folder(tmp_path):
    path = write_summary(tmp_path / "arms.json", {"b": 1, "a": {"d": 1, "c": 2}})
    names = list(json.loads(path.read_text()))
    assert names == sorted(names)
    assert list(json.loads(path.read_text())["a"]) == ["c", "d"]
    assert read_summary(path)["b"] == 1


@pytest.mark.parametrize(
    ("summary", "message"),
    [
        ({"reach": {"loss": [1.0, float("nan")]}}, "summary key 'reach.loss[1]' is nan; leave it out, or write None"),
        ({"loss": np.float32("inf")}, "summary key 'loss' is inf; leave it out, or write None"),
        ({"psnr": np.array([1.0, -np.inf])}, "summary key 'psnr[1]' is -inf; leave it out, or write None"),
    ],
)
def test_numbers_that_json_cannot_say_are_refused_by_key(tmp_path, summary, message):
    with pytest.raises(ValueError, match="summary key") as error:
        write_summary(tmp_path, summary)
    assert str(error.value).startswith(message)


def test_values_without_a_form_in_json_are_refused_by_key(tmp_path):
    with pytest.raises(TypeError, match=r"^summary key 'a\.b' is a set; give numbers, strings, arrays or mappings$"):
        write_summary(tmp_path, {"a": {"b": {1}}})


def test_a_refused_summary_leaves_the_old_one_and_no_partial_file(tmp_path):
    write_summary(tmp_path, {"loss": 1.0})
    with pytest.raises(ValueError, match="summary key 'loss' is nan"):
        write_summary(tmp_path, {"loss": float("nan")})
    assert read_summary(tmp_path)["loss"] == 1.0
    assert os.listdir(tmp_path) == ["summary.json"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_summary(tmp_path, {"loss": 1.0})

    def full_disk(path, target):
        raise OSError("no space left on device")

    monkeypatch.setattr(pathlib.Path, "replace", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write_summary(tmp_path, {"loss": 2.0})
    assert read_summary(tmp_path)["loss"] == 1.0


def test_environment_names_libraries_and_devices():
    facts = environment()
    assert facts["versions"]["jax"] == jax.__version__
    assert facts["device_count"] == jax.device_count()
    assert facts["device_kind"] == jax.devices()[0].device_kind


def test_commit_is_not_taken_from_a_repository_around_an_installed_package(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_REPOSITORY", tmp_path)
    report._git_commit.cache_clear()
    assert report._git_commit() is None
    report._git_commit.cache_clear()
