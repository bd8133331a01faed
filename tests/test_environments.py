@pytest.mark.slow
def test_list_names_every_environment(tmp_path: Path) -> None:
    result = run("-m", "camal_rl.environments", folder=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert [line.split()[0] for line in result.stdout.splitlines()[1:-1]] == available()
    assert "MarineChainsawVzd" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["Basics"], "did you mean Basic?"),
        (["Basic", "--steps", "0"], "at least 1 step"),
        (["Basic", "--random-episodes", "-1"], "not negative"),
        (["Basic", "--output", "no/folder/b.png"], "there is no folder no/folder"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line_and_code_2(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    result = run("-m", "camal_rl.environments", *arguments, folder=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("camal_rl: ")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.engine
def test_showing_an_environment_names_its_objects_and_writes_a_picture(tmp_path: Path) -> None:
    arguments = ("--output", "b.png", "--steps", "120", "--random-episodes", "3")
    result = run("-m", "camal_rl.environments", "Basic", *arguments, folder=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "actions         nothing, ATTACK, MOVE_RIGHT, MOVE_LEFT" in result.stdout
    marked = [line.split()[0] for line in result.stdout.splitlines() if line.endswith("<- target")]
    assert marked == ["Cacodemon"]
    assert "DoomPlayer" in result.stdout
    assert "in view in 100.0% of them" in result.stdout
    assert "Random policy, 3 episodes: mean return -" in result.stdout
    shown = cv2.imread(str(tmp_path / "b.png"))
    assert shown.shape == (24 + 240 + 4, 4 * (320 + 4), 3)
    drawn, seen, mask, over = (panel[24:264, :320] for panel in np.split(shown, 4, axis=1))
    assert set(np.unique(mask)) == {0, 255}
    target = mask[..., 0] > 0
    assert (over[target] != drawn[target]).any()
    np.testing.assert_array_equal(over[~target], drawn[~target])
    assert len(np.unique(seen)) > 10


@pytest.mark.engine
def test_a_picture_that_cannot_be_written_is_one_line_and_code_2(tmp_path: Path) -> None:
    result = run(
        "-m", "camal_rl.environments", "Basic", "--steps", "1", "--output", "/proc/b.png", folder=tmp_path
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("camal_rl: can't write /proc/b.png: ")
    assert result.stderr.count("\n") == 1
