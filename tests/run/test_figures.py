"""Pictures are drawn from whatever rows a run could write."""

import pickle
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from fsl.errors import ConfigError
from fsl.run import figures
from fsl.run.figure_bytes import to_bytes
from fsl.run.figures import class_counts_figure, plot, run_figures
from fsl.run.plotting import KeptFrames, Margins, new_figure

pytestmark = pytest.mark.usefixtures("pictures")


def row(round: int, **more: object) -> dict:
    return {
        "round": round,
        "train_loss": 2.0 / round,
        "loss": 2.1 / round,
        "accuracy": 1 - 0.9 / round,
        "devices": 20,
        "examples": 1000,
        "up_bytes": 12_000_000,
        "down_bytes": 12_000_000,
        "model_bytes": 3_000_000,
        "seconds": 1.5,
        "sim_seconds": None,
        **more,
    }


@pytest.fixture
def drawn(monkeypatch) -> dict[str, Figure]:
    """Copies of the figures by file name, looked at instead of written."""
    kept: dict[str, Figure] = {}

    def keep(figure: Figure, path: Path) -> None:
        kept[path.stem] = pickle.loads(pickle.dumps(figure))

    monkeypatch.setattr(figures, "save_png", keep)
    return kept


def curves(figure: Figure) -> dict[str, list[tuple[float, float]]]:
    return {
        line.get_label(): [(x, round(y, 6)) for x, y in zip(line.get_xdata(), line.get_ydata())]
        for line in figure.axes[0].get_lines()
    }


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [1, 5])
def test_a_run_has_four_pictures_of_slide_quality(tmp_path, rounds):
    written = run_figures([row(i) for i in range(1, rounds + 1)], tmp_path / "figures", "SGLR")
    assert [path.name for path in written] == ["accuracy.png", "loss.png", "bytes.png", "time.png"]
    assert sorted((tmp_path / "figures").iterdir()) == sorted(written)
    for path in written:
        with Image.open(path) as image:
            assert image.width >= 1000
            assert round(image.info["dpi"][0]) == 150


def test_what_the_rows_do_not_know_is_left_out(tmp_path, drawn):
    rows = [row(i, accuracy=None, up_bytes=0, down_bytes=0, model_bytes=0, seconds=None) for i in (1, 2)]
    assert [path.name for path in run_figures(rows, tmp_path, "regression")] == ["loss.png"]
    assert run_figures([], tmp_path, "nothing") == []


def test_rounds_without_a_value_are_skipped(tmp_path, drawn):
    rows = [{"round": 0, "accuracy": 0.1}, row(1, accuracy=None), row(2, accuracy=float("nan")), row(3, accuracy=0.7)]
    run_figures(rows, tmp_path, "evaluated every third round")
    assert curves(drawn["accuracy"]) == {"test": [(0, 10), (3, 70)]}
    assert [x for x, _ in curves(drawn["loss"])["training"]] == [1, 2, 3]


def test_bytes_add_up_and_the_axis_has_their_unit(tmp_path, drawn):
    run_figures([row(i) for i in (1, 2, 3)], tmp_path, "bytes")
    assert curves(drawn["bytes"]) == {
        "smashed data, up": [(1, 12), (2, 24), (3, 36)],
        "cut gradients, down": [(1, 12), (2, 24), (3, 36)],
        "model states": [(1, 3), (2, 6), (3, 9)],
    }
    assert drawn["bytes"].axes[0].get_ylabel() == "sent so far (MB)"


@pytest.mark.parametrize(
    ("simulated", "label", "last"),
    [(None, "wall time so far (s)", 3.0), (600.0, "simulated time so far (min)", 20.0)],
)
def test_time_is_simulated_where_the_rows_have_it(tmp_path, drawn, simulated, label, last):
    run_figures([row(i, sim_seconds=simulated) for i in (1, 2)], tmp_path, "time")
    assert drawn["time"].axes[0].get_ylabel() == label
    assert [points[-1] for points in curves(drawn["time"]).values()] == [(2, last)]


def test_the_spread_over_devices_is_a_band_within_0_and_100_percent(tmp_path, drawn):
    run_figures([row(i, accuracy=0.95, accuracy_std=0.1 if i != 2 else None) for i in (1, 2, 3)], tmp_path, "private")
    (band,) = drawn["accuracy"].axes[0].collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.min() == pytest.approx(85)
    assert heights.max() == 100


def test_lines_are_told_apart_without_colour(tmp_path, drawn):
    run_figures([row(i, validation_loss=1.0) for i in (1, 2)], tmp_path, "loss")
    lines = drawn["loss"].axes[0].get_lines()
    assert len(lines) == 3
    assert len({(line.get_linestyle(), line.get_marker()) for line in lines}) == 3


@pytest.mark.parametrize("rounds", [1, 2, 5, 200])
def test_ticks_are_whole_rounds_and_every_point_is_inside(tmp_path, drawn, rounds):
    run_figures([row(i) for i in range(1, rounds + 1)], tmp_path, "ticks")
    for figure in drawn.values():
        axes = figure.axes[0]
        assert all(tick == int(tick) for tick in axes.get_xticks())
        low, high = axes.get_ylim()
        assert all(low <= y < high for line in axes.get_lines() for y in line.get_ydata())


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "classes"), [(1, 10), (20, 4), (41, 10), (5, 100)])
def test_class_counts_are_a_picture_in_a_folder_made_for_it(tmp_path, devices, classes):
    counts = np.arange(devices * classes).reshape(devices, classes)
    class_counts_figure(counts, tmp_path / "figures" / "classes.png", "samples")
    with Image.open(tmp_path / "figures" / "classes.png") as image:
        assert image.width >= 1000


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "classes", "heat_map"), [(40, 10, False), (41, 10, True), (5, 11, True)])
def test_many_devices_or_classes_are_a_heat_map(tmp_path, drawn, devices, classes, heat_map):
    class_counts_figure(np.ones((devices, classes), dtype=int), tmp_path / "classes.png", "samples")
    assert bool(drawn["classes"].axes[0].get_images()) == heat_map


def test_bars_hold_every_sample(tmp_path, drawn):
    counts = np.array([[3, 1], [0, 5]])
    class_counts_figure(counts, tmp_path / "classes.png", "samples")
    bars = drawn["classes"].axes[0].patches  # one path a class, however many devices: a hatch takes longest
    corners = [of_class.get_path().vertices.reshape(2, 5, 2) for of_class in bars]
    assert [np.ptp(of_class[..., 0], axis=1).tolist() for of_class in corners] == [[3, 0], [1, 5]]
    assert [of_class[..., 1].mean(axis=1).round().tolist() for of_class in corners] == [[0, 1], [0, 1]]
    assert len({of_class.get_hatch() for of_class in bars}) == 2


@pytest.mark.slow
def test_a_picture_shows_nothing_of_the_one_drawn_before_on_the_same_canvas(tmp_path):
    rows = [row(i, accuracy_std=0.1) for i in (1, 2, 3)]
    (*_, after_others) = run_figures(rows, tmp_path / "all", "run")
    known = [{"round": each["round"], "seconds": each["seconds"]} for each in rows]
    (alone,) = run_figures(known, tmp_path / "alone", "run")
    assert after_others.name == alone.name == "time.png"
    assert after_others.read_bytes() == alone.read_bytes()


def test_pictures_of_a_later_run_are_those_of_a_new_process(tmp_path, monkeypatch):
    def pictures(name, title, scale):
        rows = [row(i, loss=scale * i, accuracy_std=scale / 10) for i in range(1, 5)]
        counts = np.arange(40).reshape(10, 4) * int(10 * scale)
        class_counts_figure(counts, tmp_path / name / "classes.png", title)
        run_figures(rows, tmp_path / name, title)
        return {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}

    monkeypatch.setattr(figures, "_FRAMES", KeptFrames())
    first = pictures("first", "a run", 0.5)
    pictures(
        "other", "another run, whose title is so long that it takes a second line above the plot, and a third " * 2, 30
    )
    assert pictures("again", "a run", 0.5) == first
    assert len(first) == 5


def test_a_png_has_the_pixels_that_matplotlib_draws(tmp_path):
    figure, axes = new_figure("a title", margins=Margins())
    axes.plot([1, 2, 3], [2, 0, 1])
    figure.savefig(tmp_path / "theirs.png", dpi=100)
    with Image.open(BytesIO(to_bytes(figure, "png", dpi=100))) as ours, Image.open(tmp_path / "theirs.png") as theirs:
        assert np.array_equal(np.asarray(ours), np.asarray(theirs.convert("RGB")))
        assert (ours.mode, ours.info["dpi"]) == ("RGB", theirs.info["dpi"])


def test_a_picture_that_could_not_be_written_leaves_nothing_in_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "_FRAMES", KeptFrames())
    known = [{"round": i, "loss": 1.0 / i} for i in (1, 2)]
    (first,) = run_figures(known, tmp_path / "first", "run")
    (tmp_path / "full" / "loss.png").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        run_figures([{"round": i, "train_loss": 3.0, "loss": 2.0} for i in (5, 6, 7)], tmp_path / "full", "other")
    (again,) = run_figures(known, tmp_path / "again", "run")
    assert again.read_bytes() == first.read_bytes()


def test_a_sample_of_many_devices_is_called_a_sample(tmp_path, drawn):
    class_counts_figure(np.ones((1000, 10), dtype=int), tmp_path / "classes.png", "samples")
    axes = drawn["classes"].axes[0]
    assert axes.get_ylabel() == "device (a sample of 100 out of 1,000)"
    assert axes.get_images()[0].get_array().shape == (100, 10)


def test_a_plot_has_accuracy_loss_and_bytes_side_by_side_and_legends_off_the_data(tmp_path):
    figure = plot([row(i) for i in (1, 2, 3)], "SGLR on digits")
    labels = ["accuracy (%)", "loss (mean over examples)", "sent in a round (MB)"]
    assert [axes.get_ylabel() for axes in figure.axes] == labels
    assert [axes.get_xlabel() for axes in figure.axes] == ["round"] * 3
    assert [line.get_ydata().tolist() for line in figure.axes[2].get_lines()] == [[12] * 3, [12] * 3, [3] * 3]
    figure.draw_without_rendering()
    for axes in figure.axes:
        assert axes.get_legend().get_window_extent().y0 >= axes.get_window_extent().y1
    figure.savefig(tmp_path / "run.pdf")


def test_a_plot_of_a_regression_is_its_loss_alone():
    silent = {"up_bytes": 0, "down_bytes": 0, "model_bytes": 0}
    (axes,) = plot([row(i, accuracy=None, **silent) for i in (1, 2)]).axes
    assert axes.get_ylabel() == "loss (mean over examples)"


def test_a_notebook_shows_a_plot_without_pyplot():
    shown = plot([row(1)])._repr_png_()
    assert shown.startswith(b"\x89PNG")


def test_there_is_no_plot_of_nothing():
    with pytest.raises(ConfigError, match="there is nothing to plot"):
        plot([], "nothing")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["svg", "pdf"])
def test_figures_are_written_in_other_formats_equal_for_equal_rows(tmp_path, form):
    rows = [row(i, up_bytes=0, down_bytes=0, model_bytes=0, seconds=None, train_loss=None) for i in (1, 2)]
    first = [path.read_bytes() for path in run_figures(rows, tmp_path / "a", "run", formats=(form,))]
    assert [path.name for path in sorted((tmp_path / "a").iterdir())] == [f"accuracy.{form}", f"loss.{form}"]
    assert [path.read_bytes() for path in run_figures(rows, tmp_path / "b", "run", formats=(form,))] == first


def test_a_format_that_there_is_not_names_those_there_are(tmp_path):
    with pytest.raises(ConfigError, match="formats jpg: a figure is written as png, svg, pdf"):
        run_figures([row(1)], tmp_path, "run", formats=("jpg",))


@pytest.mark.slow
def test_no_window_and_no_global_state_of_pyplot():
    code = "import sys, fsl.run.figures as f; lazy = 'matplotlib' not in sys.modules; f.new_figure('x')"
    checked = f"{code}; sys.exit(0 if lazy and 'matplotlib.pyplot' not in sys.modules else 1)"
    assert subprocess.run([sys.executable, "-c", checked], check=False).returncode == 0


def test_a_picture_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "loss.png").mkdir()
    with pytest.raises(OSError, match=r"loss\.png"):
        run_figures([row(1)], tmp_path, "run")
