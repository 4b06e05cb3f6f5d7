"""TensorBoard is shown what trials have stored, in files that only grow."""

from pathlib import Path

from dfs_rl.sweeping.tensorboard_sync import append_new_events, sync_events


def stored_events(folder: Path, name: str, content: bytes) -> Path:
    path = folder / "seed0" / "tensorboard" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_what_is_appended_reaches_a_reader_that_has_the_copy_open(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"one ")
    append_new_events(source, target)
    with target.open("rb") as reader:
        assert reader.read() == b"one "
        source.write_bytes(b"one two ")
        append_new_events(source, target)
        assert reader.read() == b"two "


def test_a_file_that_was_begun_anew_is_copied_anew(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    for content in (b"long and old", b"new", b"new and more"):
        source.write_bytes(content)
        append_new_events(source, target)
        assert target.read_bytes() == content


def test_a_trial_that_goes_on_from_another_shows_the_other_ones_past(tmp_path):
    stored, shown = tmp_path / "stored", tmp_path / "shown"
    own = stored_events(stored, "events.own", b"own")
    sync_events(stored, shown)
    own.unlink()
    stored_events(stored, "events.donor", b"donor")
    sync_events(stored, shown)
    files = {path.relative_to(shown).as_posix(): path.read_bytes() for path in shown.rglob("ev*")}
    assert files == {"seed0/events.donor": b"donor"}
