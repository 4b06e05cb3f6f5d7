from dfs_rl.reporting.tables import methods_table, summary_text


def column(text, name):
    lines = text.splitlines()
    end = lines[0].index(name) + len(name)
    return {
        line[:22].strip(): line[:end].split("  ")[-1].strip() for line in lines if "─" not in line
    }


def test_methods_stand_in_groups_with_aligned_columns(summary):
    text = methods_table(summary)
    names = [line[:22].strip() for line in text.splitlines()]
    rule = "─" * 22
    assert names == [
        "method",
        rule,
        "PPO gate",
        rule,
        "best static table",
        "confidence cascade",
        "mode table",
        "random, same marginals",
        rule,
        "full precision",
        "uniform 8 bit",
        "uniform 4 bit",
        "uniform 3 bit",
        "uniform 2 bit",
        "skip all",
    ]
    ends = {len(line) for line in text.splitlines()[3:]}
    assert len(ends) == 1  # every line but the gate's, which is compared with nothing


def test_figures_are_those_of_the_summary(summary):
    text = methods_table(summary)
    gate = summary.method("gate")
    accuracy = column(text, "accuracy %")
    assert accuracy["PPO gate"] == f"{gate.accuracy:.2f} ± {gate.accuracy_error:.2f}"
    assert column(text, "gated only %")["uniform 8 bit"] == "6.25"
    assert column(text, "gated only %")["uniform 2 bit"] == "0.391"
    assert column(text, "patterns")["PPO gate"] == f"{gate.patterns:,.0f}"
    full = next(c for c in summary.comparisons if c.key == "full")
    assert f"{full.difference:+.2f} [{full.low:+.2f}, {full.high:+.2f}]" in text


def test_text_says_what_is_counted_how_rivals_were_chosen_and_the_verdict(summary):
    text = summary_text(summary)
    assert text.startswith("cifar10, test split, 2,000 images, 9 gated layers")
    assert "Computed, not measured" in text
    assert "stem 0.065 %" in text
    assert "Best static table, chosen on val: bits 3-4-3-4-4-4-3-0-3." in text
    assert "mean of 5 draws, standard deviation" in text
    flat = " ".join(text.split())
    assert all(sentence in flat for sentence in summary.verdict)


def test_a_backbone_alone_has_no_gate_column(backbone_summary):
    text = summary_text(backbone_summary)
    assert "gate minus" not in methods_table(backbone_summary)
    assert text.endswith("\n")
