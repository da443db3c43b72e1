"""`fsl-report` in other forms: for papers, for spreadsheets, from Python, and by what somebody names."""

import csv
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fsl.simulations.fsl_report import command, report
from fsl.simulations.reports.compare import compare
from fsl.simulations.reports.markup import latex, markdown
from fsl.simulations.reports.measures import Measure, value_of
from fsl.simulations.reports.notes import notes
from fsl.simulations.reports.rerun import command_of
from fsl.simulations.reports.run_records import read_runs
from fsl.simulations.reports.spreads import Spread, holm, paired_p
from fsl.simulations.reports.tables import Table, groups_table, names_of, paired_table
from scipy import stats

from fsl.errors import ConfigError
from tests.helpers.reported import SGLR, V1, blank_figures, settings, write_run


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "pictures" not in request.fixturenames:
        blank_figures(monkeypatch)


def table(path: str) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def compared(folder: str = "runs", **more):
    return compare(read_runs([Path(folder)]).records, **more)


def write_sweep(**more) -> None:
    """Two strategies, two learning rates, two seeds."""
    for i, strategy in enumerate((V1, SGLR)):
        for rate in (0.01, 0.1):
            for seed in (0, 1):
                chosen = settings(strategy, seed, **{"optimizer.lr": rate})
                accuracy = 0.5 + 0.1 * i + rate + 0.01 * seed
                write_run(Path(f"runs/{strategy[-4:]}-{rate}-{seed}"), [0.3, accuracy], chosen, **more)


# Numbers.


@pytest.mark.slow
def test_a_csv_of_runs_holds_numbers():
    write_run(Path("runs/a"), [0.25, 0.5], settings(), sim_seconds=3.0, counted=7, f1=0.75, remark="text", flags=[1, 2])
    report("runs", "out")
    (row,) = table("out/runs.csv")
    expected = {
        "seed": 0,
        "rounds": 2,
        "rounds_done": 2,
        "final_accuracy": 0.5,
        "final_loss": 0.5,
        "final_train_loss": 1,
        "best_accuracy": 0.5,
        "up_bytes": 100,
        "down_bytes": 80,
        "model_bytes": 20,
        "total_bytes": 200,
        "seconds": 4,
        "sim_seconds": 6,
        "final_counted": 7,
        "final_f1": 0.75,
    }
    assert {key: float(row[key]) for key in expected} == expected
    assert not {"remark", "final_remark", "final_flags"} & row.keys()
    assert float(table("out/report.csv")[0]["final_f1_mean"]) == 0.75


@pytest.mark.slow
def test_a_csv_of_groups_has_settings_as_they_are_not_as_they_are_shown():
    for rate in (0.1234567, 0.1234568):
        write_run(Path(f"runs/{rate}"), [0.5], settings(**{"optimizer.lr": rate}))
    report("runs", "out")
    assert [row["setting.lr"] for row in table("out/report.csv")] == ["0.1234567", "0.1234568"]
    assert [row["group"] for row in table("out/report.csv")] == ["lr=0.1234567", "lr=0.1234568"]


@pytest.mark.parametrize("values", [[0.99, 1.0, 1.0], [0.01, 0.0], [0.5, 1.0], [1.0, 1.0]])
def test_the_interval_of_a_share_stays_within_0_and_1_and_holds_the_mean(values):
    spread = Spread.of(values, "share")
    assert 0 <= spread.low <= spread.mean <= spread.high <= 1


def test_the_intervals_of_bytes_and_of_differences_of_shares_stay_where_these_can_be():
    assert Spread.of([1.0, 100.0], "amount").low == 0
    differences = Spread.of([-0.9, 0.9], "difference of shares")
    assert (differences.low, differences.high) == (-1, 1)


def test_p_values_are_those_of_a_paired_t_test_and_corrected():
    differences = [0.02, 0.03, 0.01]
    assert paired_p(differences) == pytest.approx(stats.ttest_rel([0.52, 0.63, 0.71], [0.5, 0.6, 0.7]).pvalue)
    assert paired_p([0.0, 0.0]) == 1
    assert paired_p([0.25, 0.25]) is None  # no spread to measure it by
    # Holm: the smallest times 3, the next times 2, and never below the one before.
    assert holm([0.04, 0.01, None, 0.03]) == pytest.approx([0.06, 0.03, None, 0.06])


def test_a_report_says_which_test_and_which_correction():
    write_sweep()
    comparison = compared()
    assert paired_table(comparison).head[-2:] == ("p", "p (Holm)")
    said = " ".join(notes(comparison))
    assert "paired t-test" in said
    assert "corrected for 3 comparisons (Holm)" in said
    assert "logit scale" in said


def test_groups_without_shared_seeds_are_said_to_have_no_comparison():
    for seed in range(4):
        write_run(Path(f"runs/{seed}"), [0.5], settings(devices=4 + seed // 2, seed=seed))
    assert "No group shares two seeds with devices=4" in " ".join(notes(compared()))


# The command that runs a run again.

HYDRA = {
    "hydra": {
        "runtime": {"config_sources": [{"provider": "main"}, {"provider": "command-line", "path": "/my configs"}]},
        "job": {"config_name": "config"},
        "overrides": {"hydra": ["hydra.run.dir=x", "hydra.searchpath=[pkg://mine]"]},
    }
}


@pytest.mark.parametrize(
    ("told", "overrides", "hydra", "expected"),
    [
        (
            "run.py -m seed=0,1",
            ["seed=1", 'data.path="a b"'],
            None,
            "fsl-simulate seed=1 'data.path=\"a b\"'",
        ),
        ("run.py", ["seed=1"], HYDRA, "fsl-simulate --config-dir '/my configs' 'hydra.searchpath=[pkg://mine]' seed=1"),
        ("run.py", ["resume=runs/a", "rounds=3"], None, "fsl-simulate rounds=3"),
        ("/x/simulations/run.py seed=1 hydra.run.dir=b", None, None, "fsl-simulate seed=1"),
        ("/x/simulations/fsl_simulate.py seed=1", None, None, "fsl-simulate seed=1"),
        ("/bin/fsl-simulate -m seed=0,1", None, None, "# a job of fsl-simulate -m seed=0,1"),
        ("/home/me/train.py --lr 'a b'", None, None, "# from Python: train.py --lr 'a b'"),
        ("/lib/ipykernel_launcher.py -f /run/kernel.json", None, None, "# from a notebook"),
        ("-c", None, None, "# from Python"),
        ("/bin/flwr-serverapp --token secret", None, None, "# from flwr-serverapp"),
        (None, None, None, "# not known: the run has no summary"),
    ],
)
def test_a_command_can_be_run_again_or_says_why_not(told, overrides, hydra, expected):
    assert command_of(told, overrides, hydra) == expected


def test_where_a_configuration_came_from_is_read_from_hydras_file():
    folder = write_run(Path("runs/a"), [0.5], config={"rounds": 1})
    sources = "    - path: /my configs\n      provider: command-line\n"
    (folder / ".hydra/hydra.yaml").write_text(f"hydra:\n  runtime:\n    config_sources:\n{sources}")
    (record,) = read_runs([Path("runs")]).records
    assert record.command == "fsl-simulate --config-dir '/my configs' rounds=1"


# Names and tags.


def test_runs_of_other_names_or_tags_are_other_groups_and_repeat_none():
    for name, tags in (("a", {}), ("b", {}), ("b", {"noise": "off"})):
        write_run(Path(f"runs/{name}{len(tags)}"), [0.5], summary={"name": name, "tags": tags})
    groups = compared().groups
    assert [group.label for group in groups] == ["name=a noise=none", "name=b noise=none", "name=b noise=off"]
    assert not any(group.repeated for group in groups)


def test_a_name_is_shown_as_it_was_given_even_where_it_looks_like_a_class():
    for name in ("first.Try", "second.Other"):
        write_run(Path(f"runs/{name}"), [0.5], summary={"name": name})
    assert [group.label for group in compared().groups] == ["name=first.Try", "name=second.Other"]


def test_an_unfinished_run_has_its_name_from_the_configuration():
    write_run(Path("runs/a"), [0.5, 0.6], summary={"name": "mine"}, config={"name": "mine", "rounds": 2})
    write_run(Path("runs/b"), [0.5], settings(seed=1), finished=False, config={"name": "mine", "rounds": 2})
    assert len(compared().groups) == 1


@pytest.mark.slow
def test_a_repeated_run_is_named_with_its_twin_and_the_remedy(capsys):
    for name in ("a", "b"):
        write_run(Path(f"runs/{name}"), [0.5])
    assert command(["runs"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"1 run repeated, not in any mean: runs/(a \(as runs/b|b \(as runs/a)\)", printed)
    assert "give each its name= or tags" in printed
    assert "other results" not in printed


def test_repeated_runs_with_other_results_are_said_to_differ_in_what_nobody_wrote_down():
    write_run(Path("runs/a"), [0.5])
    write_run(Path("runs/b"), [0.75])
    assert "have other results" in " ".join(notes(compared()))


def test_groups_by_one_setting_say_what_they_are_means_over():
    write_sweep()
    comparison = compared(by=["lr"])
    assert [(group.label, len(group.counted)) for group in comparison.groups] == [("lr=0.01", 4), ("lr=0.1", 4)]
    assert not any(group.repeated for group in comparison.groups)
    assert "means, intervals and p-values are over what else differs, too: strategy (SGLR, SplitFedV1)" in " ".join(
        notes(comparison)
    )
    assert not comparison.uneven
    assert compared(by=["devices"]).groups[0].label != ""


def test_groups_with_another_mix_of_the_rest_are_said_to_be_so():
    write_sweep()
    write_run(Path("runs/more"), [0.5], settings(V1, 5, **{"optimizer.lr": 0.1}, devices=9))
    assert "not the same mix" in " ".join(notes(compared(by=["lr"])))


def test_pairs_of_groups_by_one_setting_are_seeds_not_runs():
    write_sweep()
    (pair,) = compared(by=["strategy"]).paired
    assert pair.seeds == (0, 1)
    assert pair.difference.mean == pytest.approx(-0.1)  # of SplitFedV1 to SGLR


# A metric against a setting.


@pytest.mark.slow
def test_a_metric_against_a_setting_is_a_table_and_a_figure_with_a_fitting_axis(pictures):
    write_sweep()
    comparison = report(["runs"], "out", against="lr", metric="loss", figures=["svg", "pdf"])
    rows = [(row["group"], float(row["setting.lr"]), float(row["final_loss_mean"])) for row in table("out/against.csv")]
    expected = {
        ("strategy=SplitFedV1", 0.01): 0.485,
        ("strategy=SplitFedV1", 0.1): 0.395,
        ("strategy=SGLR", 0.01): 0.385,
        ("strategy=SGLR", 0.1): 0.295,
    }
    assert {(label, rate): loss for label, rate, loss in rows} == pytest.approx(expected)
    assert comparison.response.logarithmic
    assert {path.suffix for path in Path("out/figures").iterdir()} == {".svg", ".pdf"}
    assert Path("out/figures/against.pdf").read_bytes().startswith(b"%PDF")


def test_what_adds_up_is_summed_against_a_setting_with_words_for_values():
    for strategy in (V1, SGLR):
        write_run(Path(f"runs/{strategy[-4:]}"), [0.5, 0.6], settings(strategy))
    comparison = compared(against="strategy", metric="bytes")
    assert [(p.text, p.spread.mean) for p in comparison.response.points] == [("SGLR", 200), ("SplitFedV1", 200)]
    assert not comparison.response.numeric


def test_runs_without_the_setting_are_said_to_be_left_out():
    for phi in (0.0, 1.0):
        write_run(Path(f"runs/{phi}"), [0.5], settings(SGLR, strategy__phi=phi))
    write_run(Path("runs/v1"), [0.5], settings(V1))
    assert "1 run has no phi, and is left out." in notes(compared(against="phi"))


def test_a_tag_of_numbers_has_an_axis_of_numbers():
    for depth in ("2", "10"):
        write_run(Path(f"runs/{depth}"), [0.5], summary={"tags": {"depth": depth}})
    assert [point.x for point in compared(against="depth").response.points] == [2, 10]


def test_options_of_the_setting_itself_are_means_and_said_to_be():
    for phi in (0.0, 1.0):
        write_run(Path(f"runs/{phi}"), [0.5 + phi / 5], settings(SGLR, strategy__phi=phi))
    write_run(Path("runs/v1"), [0.5], settings(V1))
    comparison = compared(against="strategy")
    (series,) = comparison.response.series
    assert [(point.text, point.spread.mean) for point in series.points] == [
        ("SGLR", pytest.approx(0.6)),
        ("SplitFedV1", 0.5),
    ]
    assert "Against strategy, means are over what else differs, too: phi (0, 1)." in notes(comparison)


# Other names.


def test_groups_settings_and_values_get_other_names_everywhere():
    write_sweep()
    rename = ["SplitFedV1=SplitFed V1", "lr=learning rate", "optimizer=trained by"]
    comparison = compared(rename=rename, baseline="strategy=SplitFedV1 lr=0.01")
    assert comparison.baseline == "strategy=SplitFed V1 learning rate=0.01"
    assert [column.head for column in names_of(comparison)] == ["strategy", "learning rate"]
    assert comparison.shared["trained by"] == "SGD"


def test_a_group_gets_a_name_of_its_own():
    write_sweep()
    comparison = compared(rename={"strategy=SGLR lr=0.1": "Ours"})
    assert comparison.groups[-1].label == "Ours" or "Ours" in [group.label for group in comparison.groups]
    assert groups_table(comparison).head[0] == "group"


# Wrong values.

BAD = [
    (
        ["--by", "nope"],
        "--by nope: no run has this setting, name or tag; those that differ are: strategy, optimizer.lr",
    ),
    (["--by", ","], "--by ',': there is an empty name in it"),
    (["--metric", "nope"], "--metric nope: no run has numbers of it; there are: train_loss, loss, accuracy"),
    (["--against", "nope"], "--against nope: no run has this setting"),
    (["--against", "devices"], "--against devices: it has the value 4 in all runs"),
    (["--rename", "x"], "--rename x: it must be OLD=NEW"),
    (["--rename", "x=y"], "--rename x=y: no group, setting or value is called 'x'"),
    (["--rename", "lr="], "--rename lr=: the new name is empty"),
    (["--rename", "SGLR=SplitFedV1"], "two groups would be called 'strategy=SplitFedV1 lr="),
    (["--format", "html"], "invalid choice: 'html'"),
    (["--figures", "png,jpg"], "--figures jpg: a figure is written as png, svg, pdf"),
    (["--target", "most"], "invalid float value: 'most'"),
    (["--out", "runs/SGLR-0.1-0"], "--out runs/SGLR-0.1-0: this is the folder of a run"),
    (["--nope"], "unrecognized arguments: --nope"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_a_wrong_value_is_one_line_and_exit_code_2(capsys, arguments, message):
    write_sweep()
    assert command(["runs", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("fsl-report: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not Path("report").exists()


WRONG_TYPES = [
    ({"folders": 3}, "folders=3: it must be a folder"),
    ({"folders": []}, "folders=[]: it must be a folder"),
    ({"folders": b"runs"}, "folders=b'runs': it must be a folder"),
    ({"folders": ["runs", None]}, "folders=None: it must be a folder"),
    ({"out": None}, "out=None: it must be a folder"),
    ({"target": "0.8"}, "target='0.8': it must be a number"),
    ({"baseline": 1}, "baseline=1: it must be a text"),
    ({"by": 3}, "by=3: it must be a text such as 'a,b', or a list of texts"),
    ({"metric": ["loss"]}, "metric=['loss']: it must be a text"),
    ({"rename": "a=b"}, "rename='a=b': it must be a mapping of texts"),
    ({"rename": {"lr": 3}}, "rename={'lr': 3}: it must be a mapping of texts"),
    ({"figures": 3}, "figures=3: it must be a text"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG_TYPES, ids=lambda v: str(v) if isinstance(v, dict) else "")
def test_an_argument_of_another_type_is_one_line(wrong, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        report(**{"folders": "runs", "out": "out", **wrong})


@pytest.mark.slow
@pytest.mark.parametrize("folders", ["runs", Path("runs"), ["runs/a", Path("runs")]], ids=str)
def test_folders_are_texts_or_paths_one_or_several(folders):
    write_run(Path("runs/a"), [0.5])
    assert len(report(folders, "out").groups) == 1


# For a paper.


def test_latex_is_escaped_and_needs_booktabs_alone():
    made = latex(
        Table(("a_b", "50 %"), (("R&D #1 {x}^2~$y$\\z", "1.0 ± 0.5"), ("[0, 1]", "-"), ("<x>", "-0.5"))), "A_1"
    )
    assert r"\caption{A\_1}" in made
    assert r"    a\_b & 50 \% \\" in made
    assert r"R\&D \#1 \{x\}\textasciicircum{}2\textasciitilde{}\$y\$\textbackslash{}z & 1.0 $\pm$ 0.5 \\" in made
    assert r"    {[0, 1]} & -- \\" in made  # else \\ would take the bracket for its option
    assert r"    \textless{}x\textgreater{} & $-$0.5 \\" in made
    assert set(re.findall(r"\\(\w+rule)", made)) == {"toprule", "midrule", "bottomrule"}


def test_markdown_is_escaped():
    made = markdown(Table(("a|b", "c"), (("*x* <y> [z]", "-"),)), "t")
    assert r"| a\|b | c |" in made
    assert r"| \*x\* \<y\> \[z\] | \- |" in made


@pytest.mark.slow
@pytest.mark.parametrize(("form", "sign"), [("latex", r"\begin{tabular}"), ("markdown", "| --- |")])
def test_a_format_prints_nothing_but_tables_that_can_be_pasted(capsys, form, sign):
    write_run(Path("runs/a"), [0.5])
    assert command(["runs", "--format", form]) == 0
    printed = capsys.readouterr().out
    assert sign in printed
    assert printed == Path("report", "report.tex" if form == "latex" else "report.md").read_text()


# The page.


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag == "a":
            self.found.append(dict(attrs)["href"])


@pytest.mark.slow
def test_runs_folders_are_links_and_what_is_common_is_folded():
    sources = {"link": {"name": "wifi", "sources": {"up_mbit": "measured by somebody"}}}
    for seed in range(2):
        write_run(Path(f"runs/a b#{seed}"), [0.5], settings(seed=seed), config={**sources, "rounds": 1})
    report("runs", "deep/out")
    page = Path("deep/out/report.html").read_text()
    reader = Links()
    reader.feed(page)
    assert reader.found == ["../../runs/a%20b%230/", "../../runs/a%20b%231/"]
    shared = page[page.index("<details>") : page.rindex("</details>")]
    assert "Common to all runs" in shared
    assert "measured by somebody" in shared[shared.index("Where the numbers of costs come from") :]
    assert page.count("measured by somebody") == 1


def test_devices_with_other_profiles_are_told_apart_by_their_names_alone():
    for name, flops in (("pi3", 1.0), ("pi4", 2.0)):
        device = {"name": name, "flops_per_second": flops, "sources": {"flops_per_second": f"about {name}"}}
        chosen = settings(**{"costs.device": f"{name}(flops_per_second={flops})"})
        write_run(Path(f"runs/{name}"), [0.5], chosen, config={"device": device, "rounds": 1})
    assert [group.label for group in compared().groups] == ["device=pi3", "device=pi4"]


@pytest.mark.slow
def test_a_report_over_another_leaves_nothing_of_it():
    for seed in range(2):
        for rate in (0.01, 0.1):
            write_run(Path(f"runs/{rate}-{seed}"), [0.5], settings(seed=seed, **{"optimizer.lr": rate}))
    report("runs", "out", against="lr")
    assert Path("out/paired.csv").exists()
    write_run(Path("one/a"), [0.5])
    report("one", "out")
    assert not any(Path("out", name).exists() for name in ("paired.csv", "against.csv", "figures/against.png"))


@pytest.mark.slow
def test_trials_of_a_search_are_sorted_by_their_score():
    for trial, accuracy in enumerate((0.5, 0.9, 0.7)):
        write_run(Path(f"runs/trial-{trial}"), [0.95 - accuracy, accuracy], settings(devices=trial))
    study = '{"metric": "accuracy", "best_round": false, "direction": "maximize"}'
    Path("runs/study.json").write_text(study)
    report("runs", "out")
    assert [row["group"] for row in table("out/report.csv")] == ["devices=1", "devices=2", "devices=0"]
    assert [row["final_accuracy"] for row in table("out/runs.csv")] == ["0.9", "0.7", "0.5"]
    assert "best first" in Path("out/report.html").read_text()


# Divergence.


def test_the_bound_of_a_summary_decides_what_diverged():
    write_run(Path("runs/high"), [0.5] * 3, summary={"divergence_bound": 0.5})  # its training loss is 1
    write_run(Path("runs/none"), [0.5] * 3, settings(seed=1), summary={"divergence_bound": None}, train_loss=1e9)
    write_run(Path("runs/old"), [0.5] * 3, settings(seed=2), train_loss=5.0)  # of 10 classes: above 2 ln 10
    states = {record.folder.name: record.state for record in read_runs([Path("runs")]).records}
    assert states == {"high": "diverged", "none": "finished", "old": "diverged"}


@pytest.mark.parametrize(
    ("key", "lower"),
    [("accuracy", False), ("validation_f1", False), ("energy_joules", True), ("mae", True), ("epsilon_model", True)],
)
def test_which_way_is_better_is_known_of_the_fields_measures(key, lower):
    assert Measure(key).lower_is_better is lower
    assert Measure("mine").lower_is_better is None


def test_what_is_no_number_in_a_row_is_no_value():
    assert value_of([{"x": 1}, {"x": "text"}, {"x": True}, {"x": None}], "x") == 1


@pytest.mark.slow
def test_a_tag_that_only_a_run_without_rounds_has_is_a_column():
    write_run(Path("runs/0"), [0.5], config={"rounds": 1, "tags": {}})
    Path("runs/1/.hydra").mkdir(parents=True)
    Path("runs/1/.hydra/overrides.yaml").write_text("[+tags.site=a]")
    Path("runs/1/.hydra/config.yaml").write_text("{rounds: 1, tags: {site: a}}")
    report(["runs"], "out")
    assert [line["tags.site"] for line in table("out/runs.csv")] == ["", "a"]


@pytest.mark.slow
@pytest.mark.parametrize("failing", ["runs_csv", "page", "in_markup"])
def test_a_report_that_cannot_be_made_leaves_the_one_from_before(failing, monkeypatch):
    write_run(Path("runs/0"), [0.5])
    report(["runs"], "out")
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}

    def fails(*arguments):
        raise LookupError(failing)

    write_run(Path("runs/1"), [0.9], settings(lr=0.5))
    monkeypatch.setattr(f"fsl.simulations.fsl_report.{failing}", fails)
    with pytest.raises(LookupError):
        report(["runs"], "out")
    assert {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_a_disk_that_is_full_leaves_the_report_from_before(monkeypatch, capsys):
    write_run(Path("runs/0"), [0.5])
    report(["runs"], "out")
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}

    def full(path, data):
        if path.name == "report.md":
            raise OSError(28, "No space left on device")
        path.write_bytes(data)

    monkeypatch.setattr("fsl.simulations.fsl_report.write_bytes", full)
    write_run(Path("runs/1"), [0.9], settings(lr=0.5))
    assert command(["runs", "--out", "out"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("fsl-report: --out out: the report cannot be written there (No space left on device)")
    assert error.count("\n") == 1
    assert {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()} == before


@pytest.mark.slow
@pytest.mark.parametrize(("out", "code"), [("file", 2), ("file/below", 1)])
def test_a_folder_for_a_report_that_cannot_be_is_named(out, code, capsys):
    write_run(Path("runs/0"), [0.5])
    Path("file").touch()
    assert command(["runs", "--out", out]) == code
    error = capsys.readouterr().err
    assert error.startswith(f"fsl-report: --out {out}: ")
    assert error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("form", ["table", "markdown"])
def test_a_report_that_cannot_be_printed_is_one_line(form, monkeypatch, capsys):
    write_run(Path("runs/0"), [0.5])
    monkeypatch.setattr("sys.stdout", Path("/dev/full").open("w", buffering=1))  # noqa: SIM115
    assert command(["runs", "--format", form]) == 1
    error = capsys.readouterr().err
    assert error.startswith("fsl-report: the report is in report, but what was to be printed cannot be")
    assert error.count("\n") == 1
