"""`fsl-report`: known runs, known tables."""

import csv
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fsl.simulations.fsl_report import command
from fsl.simulations.reports.compare import Spread, compare
from fsl.simulations.reports.differing_settings import extra_settings, labels, readable_settings
from fsl.simulations.reports.page import page
from fsl.simulations.reports.privacy_spent import privacy_csv, privacy_table
from fsl.simulations.reports.run_records import read_runs
from fsl.simulations.reports.tables import groups_table
from scipy import stats
from scipy.special import expit, logit

from tests.helpers.reported import SGLR, V1, blank_figures, settings, write_run


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "pictures" not in request.fixturenames:
        blank_figures(monkeypatch)


def test_what_changes_no_result_tells_no_runs_apart():
    assert extra_settings({"profile": True, "nodes": 2, "model": {"cut": "pool1"}}, {}) == {"model.cut": "pool1"}


def named(*chosen: dict) -> list[str]:
    return labels([readable_settings(each) for each in chosen])


def table(path: str) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def compared(folder: str = "runs", **more):
    found = read_runs([Path(folder)])
    return compare(found.records, idle=found.idle, unreadable=found.unreadable, **more)


# Reading and grouping.


def test_runs_that_differ_in_their_seed_alone_are_one_group():
    for seed in range(3):
        write_run(Path(f"runs/{seed}"), [0.5], settings(seed=seed))
    (group,) = compared().groups
    assert group.label == "strategy=SplitFedV1"
    assert [run.seed for run in group.counted] == [0, 1, 2]


def test_a_sweep_is_read_in_the_order_of_its_jobs():
    for job in (0, 2, 10):
        write_run(Path(f"runs/{job}"), [0.5], settings(devices=job))
    assert [group.label for group in compared().groups] == ["devices=0", "devices=2", "devices=10"]


def test_a_run_that_is_found_twice_counts_once():
    write_run(Path("runs/a"), [0.5])
    assert len(read_runs([Path("runs"), Path("runs/a")]).records) == 1


NAMES = [
    ([settings(), settings(devices=8)], ["devices=4", "devices=8"]),
    ([settings(V1), settings(SGLR)], ["strategy=SplitFedV1", "strategy=SGLR"]),
    # An option of one strategy alone counts where it differs within that strategy.
    (
        [settings(V1), settings(SGLR, strategy__phi=0.0), settings(SGLR, strategy__phi=0.5)],
        ["strategy=SplitFedV1", "strategy=SGLR phi=0", "strategy=SGLR phi=0.5"],
    ),
    ([settings(V1), settings(SGLR, strategy__phi=0.5)], ["strategy=SplitFedV1", "strategy=SGLR"]),
    # One that all have counts wherever it differs.
    (
        [settings(), settings(**{"optimizer.target": "torch.optim.Adam", "optimizer.lr": 0.001})],
        ["optimizer=SGD lr=0.05", "optimizer=Adam lr=0.001"],
    ),
    (
        [settings(), settings(**{"optimizer.options": {"momentum": 0.0}})],
        ["momentum=0.9", "momentum=0"],
    ),
    (
        [settings(partition="fsl.data.D {'alpha': 0.1} None"), settings(partition="fsl.data.D {'alpha': 1.0} None")],
        ["alpha=0.1", "alpha=1"],
    ),
    # A short name must not be read as another option's.
    (
        [
            settings(SGLR, strategy__alpha=1.0, partition="fsl.data.D {'alpha': 0.1} None"),
            settings(SGLR, strategy__alpha=1.0, partition="fsl.data.D {'alpha': 1.0} None"),
        ],
        ["partition.alpha=0.1", "partition.alpha=1"],
    ),
    ([settings(), settings(up="a.Int8", down="a.Int8")], ["codec=Identity", "codec=Int8"]),
    ([settings(), settings(up="a.Int8")], ["codec.up=Identity", "codec.up=Int8"]),
    (
        [settings(), settings(aggregator__class="FedAdam", aggregator__eta=0.1)],
        ["aggregator=mean", "aggregator=FedAdam"],
    ),
    # Digests speak only where nothing else does.
    ([settings(), settings(model="LeNet", **{"model.tensors": "77"})], ["model=MLP", "model=LeNet"]),
    ([settings(), settings(**{"model.tensors": "77"})], ["model.tensors=23bdf1569376242b", "model.tensors=77"]),
    # Two classes of one name are two strategies.
    ([settings("mine.SGLR"), settings("yours.SGLR")], ["strategy=mine.SGLR", "strategy=yours.SGLR"]),
]


@pytest.mark.parametrize(("chosen", "expected"), NAMES, ids=lambda v: v[-1] if isinstance(v[0], str) else "")
def test_a_label_says_what_differs_and_no_more(chosen, expected):
    assert named(*chosen) == expected


def test_runs_of_different_length_are_different_groups():
    write_run(Path("runs/a"), [0.5])
    write_run(Path("runs/b"), [0.5, 0.6])
    assert [group.label for group in compared().groups] == ["rounds=1", "rounds=2"]


def test_what_only_the_configuration_says_parts_groups_where_every_run_has_one():
    for cut in ("stage1", "stage2"):
        write_run(Path(f"runs/{cut}"), [0.5], config={"model": {"cut": cut}, "nodes": 2, "rounds": 1})
    assert [group.label for group in compared().groups] == ["cut=stage1", "cut=stage2"]
    write_run(Path("runs/third"), [0.5])  # from Python, without a configuration
    assert len(compared().groups) == 1


# States.


@pytest.mark.slow
def test_a_diverged_group_shows_that_instead_of_an_accuracy(pictures, capsys):
    for seed, loss in enumerate((float("nan"), 9.0)):
        write_run(Path(f"runs/{seed}"), [0.1, 0.1, 0.1], settings(devices=9, seed=seed), train_loss=loss)
    write_run(Path("runs/fine"), [0.5, 0.6, 0.7])
    assert command(["runs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.search(r"^ +9 +2 \(2 diverged\) +diverged( +-)+ *$", "\n".join(lines), re.M)
    assert "2 runs diverged, not in any mean" in "\n".join(lines)
    bad, fine = table("report/report.csv")
    assert (bad["diverged"], bad["counted"], bad["final_accuracy_mean"]) == ("2", "0", "")
    assert float(fine["final_accuracy_mean"]) == 0.7
    assert {row["diverged_in_round"] for row in table("report/runs.csv")} == {"1", "3", ""}


def test_a_diverged_run_is_not_averaged_in():
    write_run(Path("runs/a"), [0.8], settings(seed=0))
    write_run(Path("runs/b"), [0.1], settings(seed=1), train_loss=None)
    (group,) = compared().groups
    assert [run.seed for run in group.counted] == [0]
    assert [run.seed for run in group.diverged] == [1]


@pytest.mark.slow
def test_an_unfinished_run_is_grouped_by_its_checkpoint_and_said_so():
    write_run(Path("runs/a"), [0.5, 0.8], settings(seed=0))
    write_run(Path("runs/b"), [0.3], settings(seed=1), finished=False)
    assert command(["runs"]) == 0
    (row,) = table("report/report.csv")
    assert (row["counted"], row["unfinished"], row["final_accuracy_mean"]) == ("1", "1", "0.8")
    assert ("1", "2") in [(row["rounds_done"], row["rounds"]) for row in table("report/runs.csv")]


def test_a_finished_run_that_is_being_extended_is_unfinished():
    folder = write_run(Path("runs/a"), [0.5])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"round": 2, "accuracy": 0.6}\n')
    assert [record.state for record in read_runs([Path("runs")]).records] == ["unfinished"]


def test_an_unfinished_run_diverges_by_the_classes_of_others_on_its_data():
    write_run(Path("runs/a"), [0.8] * 3, settings(seed=0))
    write_run(Path("runs/b"), [0.1] * 3, settings(seed=1), finished=False, train_loss=5.0)
    assert [record.state for record in read_runs([Path("runs")]).records] == ["finished", "diverged"]


def test_a_run_with_the_seed_of_another_is_no_second_sample():
    for name in ("a", "b"):
        write_run(Path(f"runs/{name}"), [0.5])
    (group,) = compared().groups
    assert (len(group.counted), len(group.repeated)) == (1, 1)


@pytest.mark.slow
def test_a_job_that_finished_no_round_is_named(capsys):
    write_run(Path("runs/0"), [0.5])
    Path("runs/1/.hydra").mkdir(parents=True)
    Path("runs/1/.hydra/overrides.yaml").write_text("- devices=5000\n")
    assert command(["runs"]) == 0
    assert "Without a finished round: runs/1." in capsys.readouterr().out
    assert table("report/runs.csv")[-1]["command"] == "fsl-simulate devices=5000"


@pytest.mark.slow
@pytest.mark.parametrize(("file", "text"), [("metrics.jsonl", "damaged\n{}\n"), ("summary.json", "{")])
def test_a_damaged_run_is_one_line_and_the_others_are_reported(capsys, file, text):
    write_run(Path("runs/0"), [0.5])
    write_run(Path("runs/1"), [0.5], settings(seed=1))
    (Path("runs/1") / file).write_text(text)
    assert command(["runs"]) == 0
    left_out = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Left out: ")]
    assert len(left_out) == 1
    assert f"runs/1/{file} is damaged" in left_out[0]
    assert table("report/report.csv")[0]["runs"] == "1"


BAD = [
    (["nowhere"], "nowhere: there is no such folder"),
    (["empty"], "empty: there is no run to report on; give folders of runs or sweeps"),
    (["damaged"], "line 1 of damaged/metrics.jsonl is damaged"),
    (["runs", "--target", "80"], "--target 80.0: an accuracy lies in (0, 1]"),
    (["runs", "--target", "nan"], "--target nan: an accuracy lies in (0, 1]"),
    (["runs", "--baseline", "x"], "--baseline 'x': no group has this in the label; there are: devices=4; devices=8"),
    (["runs", "--baseline", "dev"], "--baseline 'dev': 2 groups have this in the label"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_bad_input_is_one_line_and_exit_code_2(capsys, arguments, message):
    Path("empty").mkdir()
    Path("damaged").mkdir()
    Path("damaged/metrics.jsonl").write_text("{\n{}\n")
    for devices in (4, 8):
        write_run(Path(f"runs/{devices}"), [0.5], settings(devices=devices))
    assert command(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("fsl-report: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not Path("report").exists()


# Numbers.


@pytest.mark.slow
def test_the_table_is_what_one_works_out_by_hand():
    for seed, accuracies in enumerate(([0.2, 0.7, 0.6], [0.5, 0.6, 0.8])):
        write_run(Path(f"runs/{seed}"), accuracies, settings(seed=seed), accuracy_std=0.1 * (seed + 1), sim_seconds=5)
    assert command(["runs", "--target", "0.6"]) == 0
    (row,) = table("report/report.csv")
    numbers = {key: float(value) for key, value in row.items() if re.fullmatch(r"[\d.e-]+", value)}
    # Student's t on the logit scale: the standard error there is that of the mean over p (1 - p).
    reach = stats.sem([0.6, 0.8]) / (0.7 * 0.3) * stats.t.ppf(0.975, 1)
    expected = {
        "final_accuracy_mean": 0.7,
        "final_accuracy_std": 0.02**0.5,
        "final_accuracy_ci95_low": expit(logit(0.7) - reach),
        "final_accuracy_ci95_high": expit(logit(0.7) + reach),
        "final_loss_ci95_high": 0.3 + stats.sem([0.4, 0.2]) * stats.t.ppf(0.975, 1),
        "best_accuracy_mean": 0.75,
        "final_loss_mean": 0.3,
        "accuracy_std_over_devices_mean": 0.15,
        "reached_target": 2,
        "rounds_to_target_mean": 2,
        "bytes_to_target_mean": 200,
        "sim_seconds_to_target_mean": 10,
        "up_bytes_mean": 150,
        "down_bytes_mean": 120,
        "model_bytes_mean": 30,
        "total_bytes_mean": 300,
        "wall_seconds_mean": 6,
    }
    assert {key: numbers[key] for key in expected} == pytest.approx(expected)
    assert row["seeds"] == "0 1"


def test_one_run_has_no_spread():
    assert Spread.of([0.5, None]) == Spread(1, 0.5)
    assert Spread.of([None]) is None


def test_the_target_is_by_default_what_every_finished_run_reaches():
    write_run(Path("runs/a"), [0.9], settings(seed=0))
    write_run(Path("runs/b"), [0.29, 0.1], settings(devices=8))
    write_run(Path("runs/c"), [0.05], settings(devices=9), train_loss=None)
    comparison = compared()
    assert comparison.target == 0.29  # the diverged run has no say
    assert [len(costs) for costs in comparison.costs.values()] == [1, 1, 0]


@pytest.mark.slow
def test_runs_that_miss_the_target_are_counted(capsys):
    for seed, accuracy in enumerate((0.9, 0.9, 0.7)):
        write_run(Path(f"runs/{seed}"), [0.5, accuracy], settings(seed=seed))
    assert command(["runs", "--target", "0.8"]) == 0
    (row,) = table("report/report.csv")
    assert (row["counted"], row["reached_target"], row["rounds_to_target_mean"]) == ("3", "2", "2.0")
    assert "2/3" in capsys.readouterr().out


def test_rounds_without_an_evaluation_cost_bytes_all_the_same():
    write_run(Path("runs/a"), [None, 0.2, None, 0.9], settings())
    (cost,) = compared(target=0.8).costs["strategy=SplitFedV1"]
    assert (cost.rounds, cost.bytes, cost.sim_seconds) == (4, 400, None)


@pytest.mark.slow
def test_groups_are_compared_seed_by_seed():
    one, other = {0: 0.50, 1: 0.60, 2: 0.70}, {0: 0.52, 1: 0.63, 2: 0.71, 3: 0.99}
    for devices, finals in ((4, one), (8, other)):
        for seed, accuracy in finals.items():
            write_run(Path(f"runs/{devices}-{seed}"), [accuracy], settings(seed=seed, devices=devices))
    assert command(["runs", "--baseline", "devices=4"]) == 0
    (row,) = table("report/paired.csv")
    expected = stats.ttest_rel([0.52, 0.63, 0.71], [0.50, 0.60, 0.70]).confidence_interval(0.95)
    low, high = (float(row[f"final_accuracy_difference_ci95_{end}"]) for end in ("low", "high"))
    assert (low, high) == pytest.approx((expected.low, expected.high))
    assert (row["group"], row["baseline"], row["seeds"]) == ("devices=8", "devices=4", "0 1 2")


@pytest.mark.slow
def test_a_narrow_terminal_shows_what_fits_and_says_what_does_not(capsys, monkeypatch):
    for seed in range(2):
        write_run(Path(f"runs/{seed}"), [0.5, 0.75], settings(seed=seed))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    assert command(["runs"]) == 0
    printed = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    shown, note = printed.split("This terminal is too narrow for: ")
    assert max(map(len, shown.splitlines())) <= 60
    assert "75.00 ± 0.00" in shown
    assert note.splitlines()[0].endswith("bytes in all, wall time; they are on the page.")


@pytest.mark.slow
def test_regression_is_reported_by_its_loss(pictures, capsys):
    for devices in (4, 8):
        write_run(Path(f"runs/{devices}"), [None, None], settings(devices=devices), loss=1.0 / devices)
    assert command(["runs"]) == 0
    printed = capsys.readouterr().out
    assert "final loss" in printed
    assert "No run has an accuracy, so there is no target." in printed
    assert [row["final_loss_mean"] for row in table("report/report.csv")] == ["0.25", "0.125"]


# The page.


class Reader(HTMLParser):
    """The elements of a page, with what its tables say."""

    def __init__(self):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def read_page(path: str = "report/report.html") -> tuple[str, Reader]:
    text, reader = Path(path).read_text(), Reader()
    reader.feed(text)
    return text, reader


@pytest.mark.slow
def test_the_page_needs_nothing_but_itself_and_shows_every_figure(pictures):
    for seed in range(2):
        for strategy in (V1, SGLR):
            folder = Path(f"runs/{strategy[-4:]}{seed}")
            write_run(folder, [0.5, 0.7], settings(strategy, seed), sim_seconds=3.0)
    assert command(["runs"]) == 0
    text, page = read_page()
    assert not re.search(r"https?://|url\(|@import|<script|<link", text)
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(images) == 4
    assert all(image["src"].startswith("data:image/svg+xml;base64,") and image["alt"] for image in images)
    assert sorted(path.name for path in Path("report/figures").iterdir()) == [
        "bytes.png",
        "final.png",
        "learning.png",
        "time.png",
    ]
    for words in ("SGLR", "SplitFedV1", "4 runs in 2 groups.", "devices", "Target accuracy: 70 %"):
        assert any(words in said for said in page.text)


@pytest.mark.slow
def test_what_comes_from_users_is_escaped(pictures):
    folder = write_run(Path("runs/<b>bold"), [0.5], settings(devices="<script>alert(1)</script>"))
    write_run(folder.with_name("plain"), [0.5], settings(devices="$x$ & {{ title }}"))
    assert command(["runs", "--title", "<i>"]) == 0
    text, page = read_page()
    assert not {"script", "b", "i"} & {tag for tag, _ in page.tags}
    assert "<title>&lt;i&gt;</title>" in text
    assert "{{ title }}" in text


@pytest.mark.slow
def test_many_groups_are_drawn_in_part_and_the_page_says_which(pictures):
    for i in range(12):
        write_run(Path(f"runs/{i}"), [0.1 + i / 20], settings(devices=i + 1))
    assert command(["runs"]) == 0
    said = " ".join(read_page()[1].text)
    assert "Drawn are the 10 of 12 groups with the highest final accuracy." in said
    assert len(table("report/report.csv")) == 12


@pytest.mark.slow
def test_a_report_may_be_written_again_over_itself():
    write_run(Path("runs/a"), [0.5])
    assert command(["runs", "--out", "runs/report"]) == 0
    first = Path("runs/report/report.html").read_bytes()
    assert command(["runs", "--out", "runs/report"]) == 0
    assert Path("runs/report/report.html").read_bytes() == first


# Privacy.


def test_what_was_spent_is_told_where_anything_is_protected():
    figures = ("model", "devices", "edge", "cloud", "cloud_edge", "network")
    for seed, model in ((0, 2.5), (1, 3.25)):
        spent = dict(zip((f"epsilon_{name}" for name in figures), (model, 2.0, None, 1.5, None, 0.0), strict=True))
        write_run(Path(f"runs/private-{seed}"), [0.5, 0.6], settings(devices=4, seed=seed), **spent)
    write_run(Path("runs/bare"), [0.5, 0.6], settings(devices=8))
    comparison = compared()
    shown = privacy_table(comparison)
    worst = ("3.25", "2", "unbounded", "1.5", "unbounded", "0")
    assert {row[1:] for row in shown.rows} == {worst, ("-",) * 6}
    assert "privacy.json" in page(comparison, [], "Runs", [])
    bare, private = sorted(privacy_csv(comparison).splitlines()[1:], key=len)
    assert private.endswith(",3.25,2.0,inf,1.5,inf,0.0")
    assert bare.endswith(",,,,,")
    write_run(Path("other/bare"), [0.5], settings())
    assert privacy_table(compared("other")) is None


def test_groups_are_told_by_the_mechanisms_that_protect_them():
    unused = dict.fromkeys(("privacy.dp_sgd", "privacy.client", "privacy.nopeek"))
    for noise in (0.1, 0.2):
        cut = {"privacy.cut.noise_multiplier": noise, "privacy.cut.clip": 1.0, "privacy.labels": None, **unused}
        write_run(Path(f"runs/cut-{noise}"), [0.5], settings(**cut))
    labels = {"privacy.cut.noise_multiplier": 0.1, "privacy.cut.clip": 1.0, "privacy.labels.epsilon": 2.0, **unused}
    write_run(Path("runs/labels"), [0.5], settings(**labels))
    write_run(Path("runs/bare"), [0.5], settings())
    shown = {tuple(group.shown.items()) for group in compared().groups}
    assert shown == {
        (("privacy", "cut"), ("noise_multiplier", "0.1")),
        (("privacy", "cut"), ("noise_multiplier", "0.2")),
        (("privacy", "cut+labels"),),
        (("privacy", "none"),),
    }


# Moves.


def test_moves_are_told_where_there_are_any():
    moving = {"moves": 3, "migration_bytes": 2_000_000, "migration_seconds": 0.5, "wasted_steps": 0}
    write_run(Path("runs/moving"), [0.5, 0.6], settings(devices=4), **moving)
    write_run(Path("runs/still"), [0.5, 0.6], settings(devices=8))
    table_shown = groups_table(compared())
    rows = [dict(zip(table_shown.head, row, strict=True)) for row in table_shown.rows]
    told = ("moves", "bytes between edges", "time moving", "steps done again")
    assert [[row[name] for name in told] for row in rows] == [["6", "4.0 MB", "1.0 s", "0"], ["-"] * 4]
    write_run(Path("other/still"), [0.5], settings())
    assert not set(told) & set(groups_table(compared("other")).head)
