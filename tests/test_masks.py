def test_mask_follows_the_pixels_and_not_the_list_of_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.zeros((120, 160), np.uint8)
    pixels[60:] = 1  # floor
    pixels[10:20, 30:50] = 80
    pixels[40:50, 30:50] = 90
    labels = {80: "Cacodemon", 90: "DeadCacodemon", 70: "Cacodemon", 1: "Cacodemon", 0: "Cacodemon"}
    monkeypatch.setattr(doom, "start_engine", lambda *_: StillGame(labels, pixels))
    mask = doom.DoomEnv("Basic", (84, 84), SMALL).reset(seed=0)[0]["mask"]
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, pixels == 80)


@pytest.mark.parametrize("targets", range(6))
def test_a_mask_has_the_pixels_of_every_target_however_many(targets: int) -> None:
    definition = load_definition("Basic")
    names = [*(["Cacodemon"] * targets), "Blood", "DoomPlayer"]
    rng = np.random.default_rng(targets)
    pixels = rng.integers(0, 2, (30, 40), np.uint8)
    labels = []
    for value, name in enumerate([*names, "Cacodemon"], 2):
        y, x, height, width = (
            int(rng.integers(low, high)) for low, high in ((0, 20), (0, 30), (1, 10), (1, 10))
        )
        pixels[y : y + height, x : x + width][rng.random((height, width)) < 0.7] = value  # over those before
        labels.append(
            SimpleNamespace(
                value=value, object_name=name, object_category="Unknown", x=x, y=y, width=width, height=height
            )
        )
    labels[-1].value = 1  # what a crowd has left no value for is drawn as a wall
    pixels[pixels == len(labels) + 1] = 1
    out = np.full((30, 40), 7, np.uint8)
    box = masks.target_mask(cast(Any, SimpleNamespace(labels=labels, labels_buffer=pixels)), definition, out)
    np.testing.assert_array_equal(out, (pixels >= 2) & (pixels < 2 + targets))
    assert out[box].sum() == out.sum()
    assert (out[box].size > 0) == (targets > 0)


@pytest.mark.engine
@pytest.mark.parametrize("name", available())
def test_objects_are_drawn_within_the_boxes_of_their_labels(
    start: Callable[..., doom.DoomEnv], name: str
) -> None:
    """So a mask need not look elsewhere in the buffer: its pixels are those of the whole."""
    env = start(name)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    targets = 0
    for _ in range(150):
        state = env.game.get_state()
        assert state.labels is not None
        values = [
            label.value
            for label in state.labels
            if label.value > 1 and env.definition.is_target(label.object_name, label.object_category)
        ]
        expected = np.isin(state.labels_buffer, values)
        np.testing.assert_array_equal(env.mask, expected)
        assert env.mask[env.mask_box].sum() == expected.sum()
        targets += expected.sum()
        if any(env.advance(int(rng.integers(len(env.actions))))[1:]):
            env.reset()
    assert targets > 0 or name in ("HealthGathering", "MyWayHome")  # where they can be far away
