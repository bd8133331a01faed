"""ViZDoom -> Gymnasium: a stack of grey frames and, beside it, the mask of the targets in the newest frame.

The mask comes from the engine's label buffer and stays at that buffer's resolution. ViZDoom is deterministic
given the seed of an episode and the actions since, so that pair is an environment's whole state: it is what a
checkpoint keeps, and replaying it rebuilds the environment in any engine.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import gymnasium
import numpy as np
import vizdoom
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from camal_rl.errors import UserError, in_one_line
from camal_rl.game.definition import RENDER_RESOLUTIONS, Definition, load_definition
from camal_rl.game.engine import ENGINE_ERRORS, TIME_LIMIT, check_shared_memory, start_engine
from camal_rl.game.frames import Stack, grey, shrinking
from camal_rl.masks import Box, Projection, target_mask

Observation = dict[str, np.ndarray]

EVALUATION_SEEDS = 2**31
"""The engine takes seeds below 2**32: those from here on are for evaluation, those below for training."""
FRAME_SIZE = (84, 84)
"""Height and width of the frames the agent sees, in pixels (CleanRL's CNN)."""
FRAME_STACK = 4
"""Frames the agent sees at once, the newest last (paper, Table 8)."""
MOST_FAILURES = 10
"""Engines that may end in a row before no other is tried."""


class Episode(NamedTuple):
    """A finished episode."""

    end: int  # agent steps of its environment, from the first episode's start to this one's end
    total: float  # raw return
    length: int  # agent steps


class DoomEnv(gymnasium.Env[Observation, np.int64]):
    """One ViZDoom game.

    Observations are `{"image": uint8 (stack, H, W), "mask": uint8 {0, 1} (h_label, w_label)}`: grey frames,
    the newest last, and the targets' pixels in the newest frame at the label buffer's resolution. After an
    episode's last action ViZDoom has no frame to show, and the observation is the last real one. An action
    is one button or none, in the order of ViZDoom's own wrapper with `max_buttons_pressed=1`; buttons with a
    range (`..._DELTA`) are left alone.

    Args:
        env: an environment's name, the path of a TOML file, or a `Definition`.
        frame_size: height and width of the frames, in pixels, no greater than rendered.
        render_resolution: what the engine draws, one of `RENDER_RESOLUTIONS`.
        frame_stack: how many frames an observation holds.
        render_mode: `rgb_array`, or None. `render()` gives the newest frame in colour, as it was drawn.
        prepare: called with the game before it starts, to change how it looks.
        engine_timeout: seconds after which an engine that does not answer counts as hung.
        max_episode_steps: agent steps after which an episode is truncated, if it is.

    An engine that ends, is killed or hangs is replaced by another one that is played to where it was, and
    nothing is to be seen of it but `restarts`. If that one ends at the same action too, so does the episode,
    as truncated.

    Attributes:
        restarts: engines that have been replaced.
        steps: agent steps so far, over all episodes.
        episode_return: raw return of the running episode so far.

    Raises:
        UserError: a definition, a size or a machine on which no engine can start, or on which engines end one
            after the other.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(
        self,
        env: str | Path | Definition = "Basic",
        frame_size: Sequence[int] = FRAME_SIZE,
        render_resolution: str = "320x240",
        frame_stack: int = FRAME_STACK,
        render_mode: str | None = None,
        prepare: Callable[[vizdoom.DoomGame], None] | None = None,
        engine_timeout: float = TIME_LIMIT,
        max_episode_steps: int | None = None,
    ) -> None:
        self.definition = env if isinstance(env, Definition) else load_definition(env)
        self.render_mode = render_mode
        self.metadata = self.metadata | {"render_fps": vizdoom.DEFAULT_TICRATE / self.definition.frame_skip}
        self.max_episode_steps = max_episode_steps
        if render_resolution not in RENDER_RESOLUTIONS:
            raise UserError(
                f"no render resolution {render_resolution!r}; choose one of {', '.join(RENDER_RESOLUTIONS)}."
            )
        if render_mode not in (None, "rgb_array"):
            raise UserError(f"no render mode {render_mode!r}; choose rgb_array or None.")
        self.label_size = label_size = RENDER_RESOLUTIONS[render_resolution]
        try:
            height, width, frame_stack = map(operator.index, (*frame_size, frame_stack))
            if not (1 <= height <= label_size[0] and 1 <= width <= label_size[1] and frame_stack >= 1):
                raise ValueError
        except (TypeError, ValueError) as error:
            raise UserError(
                f"frame size {frame_size!r}, frame stack {frame_stack!r}: a size is two whole numbers within "
                f"the {label_size[0]} {label_size[1]} that are rendered, a stack is one or more."
            ) from error
        self.frame_size = (height, width)
        boxes: dict[str, spaces.Space[Any]] = {
            "image": spaces.Box(0, 255, (frame_stack, height, width), np.uint8),
            "mask": spaces.Box(0, 1, label_size, np.uint8),
        }
        self.observation_space = cast("spaces.Space[Observation]", spaces.Dict(boxes))
        self._shrink = shrinking(label_size, self.frame_size)

        def prepared(game: vizdoom.DoomGame) -> None:
            if render_mode is not None:
                _in_colour(game)
            if prepare is not None:
                prepare(game)

        looks = (*label_size, prepared)
        self._start_engine = partial(start_engine, self.definition.scenario, *looks, engine_timeout)
        self.game = self._start_engine()
        self.restarts = self.steps = 0
        self.episode_return = 0.0
        self._failures = 0  # engines that ended since the last action that went well
        self.buttons = [button.name for button in self.game.get_available_buttons()]
        try:
            self.actions = single_buttons(self.game.get_available_buttons())
        except UserError:
            self.close()
            raise
        self.action_names = ["nothing", *(self.buttons[action.index(1.0)] for action in self.actions[1:])]
        self.action_space = spaces.Discrete(len(self.actions))
        self.write_to(np.zeros((height, width, frame_stack), np.uint8), np.zeros(label_size, np.uint8))
        self.mask_box: Box = (slice(0, 0), slice(0, 0))  # the mask is empty outside
        self._screen: np.ndarray | None = None  # as drawn, in colour where it is to be shown
        self._episode_seed: int | None = None  # None where no episode is running
        self._episode_actions: list[int] = []

    @property
    def episode_length(self) -> int:
        """Agent steps of the running episode so far."""
        return len(self._episode_actions)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode. Its own seed is drawn from `np_random`, which `seed` sets."""
        super().reset(seed=seed)
        self.begin_episode()
        return self._observation(), {}

    def step(self, action: np.int64 | int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Hold one button, or none, for `frame_skip` tics."""
        reward, terminated, truncated = self.advance(int(action))
        return self._observation(), reward, terminated, truncated, {}

    def render(self) -> np.ndarray | None:
        """Return the newest frame as drawn, uint8 (h_label, w_label, 3); None without a render mode."""
        if self.render_mode is None:
            return None
        if self._screen is None:
            raise RuntimeError("nothing has been drawn yet: call reset() before render()")
        return np.array(self._screen)

    def close(self) -> None:
        """End the engine's process."""
        self.game.close()

    def write_to(self, memory: np.ndarray, mask: np.ndarray) -> None:
        """Write observations where they are read: uint8 (H, W, stack) and (h_label, w_label)."""
        self._stack = Stack(memory)
        self.image, self.mask = self._stack.images, mask

    def begin_episode(self, seed: int | None = None) -> None:
        """Start the episode of this engine seed, else of one drawn from `np_random`.

        The stack is filled with its first frame. What is drawn is below `EVALUATION_SEEDS`, so an episode
        that is evaluated, with a seed from there on, has not been trained on.
        """
        drawn = int(self.np_random.integers(EVALUATION_SEEDS)) if seed is None else seed
        self._persist(lambda: self._start(drawn))

    def advance(self, action: int) -> tuple[float, bool, bool]:
        """Act once; return the reward and whether the episode terminated or was truncated, never both."""
        if self._episode_seed is None:
            raise RuntimeError("no episode is running: call reset() before step()")
        if not 0 <= action < len(self.actions):
            raise ValueError(f"no action {action}: valid actions are 0 to {len(self.actions) - 1}")
        try:
            reward, terminated, truncated = self._act(action)
        except ENGINE_ERRORS as error:
            reward, terminated, truncated = self._act_anew(action, error)
        self.steps += 1
        self._episode_actions.append(action)
        truncated = truncated or (not terminated and self.episode_length == self.max_episode_steps)
        if terminated or truncated:
            self._episode_seed = None
        return reward, terminated, truncated

    def _act(self, action: int) -> tuple[float, bool, bool]:
        reward = float(self.game.make_action(self.actions[action], self.definition.frame_skip))
        self._failures = 0
        self.episode_return += reward
        if not self.game.is_episode_finished():
            self._push_frame()
            return reward, False, False
        # A player who dies in the very tic of the time limit has died.
        truncated = bool(self.game.is_episode_timeout_reached() and not self.game.is_player_dead())
        return reward, not truncated, truncated

    def _act_anew(self, action: int, error: Exception) -> tuple[float, bool, bool]:
        """Act in another engine; where that one ends as well, the action is at fault: no third is tried."""
        seed, actions = self._episode_seed, self._episode_actions
        assert seed is not None
        self._replace_engine(error)
        self._persist(lambda: self._replay(seed, actions))
        try:
            return self._act(action)
        except ENGINE_ERRORS as another:
            self._replace_engine(another)
            return 0.0, False, True

    def _persist(self, play: Callable[[], None]) -> None:
        """Play from an episode's first frame on, and anew in another engine where this one ends."""
        while True:
            try:
                return play()
            except ENGINE_ERRORS as error:
                self._replace_engine(error)

    def _replace_engine(self, error: Exception) -> None:
        self.game.close()
        while True:
            self._failures += 1
            if self._failures > MOST_FAILURES:
                raise UserError(
                    f"ViZDoom engines of {self.definition.name} ended {self._failures} times in a row, the "
                    f"last with: {in_one_line(error)} Check free memory (`free -m`), shared memory "
                    "(`df /dev/shm`) and who may have ended them (`dmesg`)."
                ) from error
            try:
                self.game = self._start_engine()
            except UserError as another:
                error = another
            else:
                self.restarts += 1
                return

    def state_dict(self) -> dict[str, Any]:
        """Return the exact state in plain values: the episode's seed, its actions, and the seeds to come.

        Raises:
            RuntimeError: no episode is running.
        """
        if self._episode_seed is None:
            raise RuntimeError("no episode is running: call reset() before state_dict()")
        return {
            "episode_seed": self._episode_seed,
            "episode_actions": list(self._episode_actions),
            "np_random": self.np_random.bit_generator.state,
            "steps": self.steps,
            "restarts": self.restarts,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Bring back the state of `state_dict`, made by any environment of the same definition, by replay.

        Raises:
            UserError: the replayed episode ended early, so it can't be the same engine or scenario.
        """
        self.np_random.bit_generator.state = state["np_random"]
        self.steps, self.restarts = state["steps"], state["restarts"]
        self._persist(lambda: self._replay(state["episode_seed"], state["episode_actions"]))

    def _replay(self, seed: int, actions: Sequence[int]) -> None:
        played = list(actions)
        self._start(seed)
        for index, action in enumerate(played):
            visible = len(played) - index <= len(self.image)  # older frames are no longer in the stack
            self.game.set_action(self.actions[action])
            self.game.advance_action(self.definition.frame_skip, visible)
            self.episode_return += self.game.get_last_reward()
            if self.game.is_episode_finished():
                raise UserError(
                    f"{self.definition.name}: the replay of an episode ended after {index + 1} of its "
                    f"{len(played)} actions: ViZDoom or the scenario is not the one that played it. "
                    "Bring that back, or start a new run."
                )
            if visible:
                self._push_frame()
        self._episode_actions = played

    def _start(self, seed: int) -> None:
        self._episode_seed = seed
        self._episode_actions = []
        self.episode_return = 0.0
        self.game.set_seed(seed)
        self.game.new_episode()
        if self.game.is_episode_finished():
            raise UserError(
                f"{self.definition.name}: the episode of seed {seed} was over before it began. "
                f"Check episode_start_time and episode_timeout in {self.definition.scenario}."
            )
        self._push_frame()
        self.image[:-1] = self.image[-1]

    def _push_frame(self) -> None:
        state = self.game.get_state()
        self._screen = state.screen_buffer
        self._stack.push(self._shrink(self._screen if self.render_mode is None else grey(self._screen)))
        self.mask_box = target_mask(state, self.definition, self.mask)

    def _observation(self) -> Observation:
        return {"image": self.image.copy(), "mask": self.mask.copy()}


def replay(
    definition: Definition, episode_seed: int, actions: Sequence[int]
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Play an episode again, in colour and tic by tic: the same game as `DoomEnv` played it.

    Yields, for every tic from the first frame to the last action's last but one, or the episode's end: the
    agent step whose action is being held, the screen, uint8 (H, W, 3) RGB, and the target mask, uint8 {0, 1}
    (H, W).

    Raises:
        UserError: no engine can start on this machine.
    """
    size = RENDER_RESOLUTIONS["320x240"]
    with closing(start_engine(definition.scenario, *size, _in_colour)) as game:
        buttons = single_buttons(game.get_available_buttons())
        game.set_seed(episode_seed)
        game.new_episode()
        for tic in range(len(actions) * definition.frame_skip):
            if tic:
                game.make_action(buttons[actions[(tic - 1) // definition.frame_skip]], 1)
            if game.is_episode_finished():
                return
            state = game.get_state()
            mask = np.zeros(size, np.uint8)
            target_mask(state, definition, mask)
            yield tic // definition.frame_skip, state.screen_buffer.copy(), mask


def _in_colour(game: vizdoom.DoomGame) -> None:
    game.set_screen_format(vizdoom.ScreenFormat.RGB24)


def single_buttons(buttons: Sequence[vizdoom.Button]) -> list[list[float]]:
    """Return the actions: nothing, then each binary button alone, the last first, as in ViZDoom's wrapper."""
    binary = [index for index, button in enumerate(buttons) if not vizdoom.is_delta_button(button)]
    if not binary:
        raise UserError(
            "the scenario has no binary button to press: add one to available_buttons in its .cfg."
        )
    return [[float(index == pressed) for index in range(len(buttons))] for pressed in (-1, *reversed(binary))]


class DoomVectorEnv(VectorEnv[dict[str, np.ndarray], np.ndarray, np.ndarray]):
    """Several ViZDoom games stepped at once, one thread each: the engines are processes of their own.

    A finished environment starts its next episode in the same step (`AutoresetMode.SAME_STEP`): the
    observation is the new episode's first, and `infos["final_obs"]` holds the last real one of the old.

    Args:
        env, *options, **named_options: as for `DoomEnv`.
        num_envs: number of games.
        map_size: height and width of the attention map to which masks are projected, if they are.

    Attributes:
        images: the newest observations' images, uint8 (N, stack, H, W), overwritten by the next step.
        masks: their masks, uint8 (N, h_label, w_label).
        mask_weights: their masks, projected (see `masks.mask_weights`), float32 (N, 2, h, w).

    Raises:
        UserError: as `DoomEnv`; the engines already started are ended first.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(
        self,
        env: str | Path | Definition = "Basic",
        num_envs: int = 1,
        *options: Any,
        map_size: tuple[int, int] | None = None,
        **named_options: Any,
    ) -> None:
        # First, because Gymnasium closes what was not even started.
        self.envs: list[DoomEnv] = []
        self._threads = ThreadPoolExecutor(max(num_envs, 1), thread_name_prefix="doom")
        if num_envs < 1:
            raise UserError(f"{num_envs} environments: at least 1 is needed.")
        self.definition = env if isinstance(env, Definition) else load_definition(env)
        self.num_envs = num_envs
        check_shared_memory(num_envs)
        try:
            for _ in range(num_envs):
                self.envs.append(DoomEnv(self.definition, *options, **named_options))
        except BaseException:
            self.close_extras()
            raise
        self.render_mode = self.envs[0].render_mode
        self.metadata = self.metadata | self.envs[0].metadata
        stack, *size = self.envs[0].image.shape
        memory = np.zeros((num_envs, *size, stack), np.uint8)
        self.images = np.moveaxis(memory, -1, 1)
        self.masks = np.zeros((num_envs, *self.envs[0].mask.shape), np.uint8)
        for index, game in enumerate(self.envs):
            game.write_to(memory[index], self.masks[index])
        self._projection = None if map_size is None else Projection(self.envs[0].label_size, map_size)
        self.mask_weights = np.zeros((num_envs, 2, *(map_size or (0, 0))), np.float32)
        self._mask_sums = np.zeros(self.mask_weights[:, 0].shape)
        self.single_observation_space = self.envs[0].observation_space
        self.single_action_space = self.envs[0].action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._rewards = np.zeros(num_envs)
        self._terminations, self._truncations = np.zeros((2, num_envs), np.bool_)
        self._final: list[Observation | None] = [None] * num_envs
        self._episodes: list[Episode] = []

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start an episode everywhere, or where `options["reset_mask"]`, bool (N,), is true.

        An int seeds environment i with `seed + i`, a sequence gives each its own, None goes on with the old.
        """
        if seed is None or isinstance(seed, (int, np.integer)):
            seeds = [None if seed is None else int(seed) + index for index in range(self.num_envs)]
        else:
            seeds = list(seed)
        chosen = (options or {}).get("reset_mask", [True] * self.num_envs)
        if not len(seeds) == len(chosen) == self.num_envs:
            raise ValueError(
                f"{len(seeds)} seeds and a mask of {len(chosen)} for {self.num_envs} environments"
            )
        self._each(lambda game, seed: self.envs[game].reset(seed=seed) if chosen[game] else None, seeds)
        return self._seen()

    def step(
        self, actions: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Act in every environment; `actions` is int (N,). Rewards are float64 (N,), unclipped."""
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,):
            raise ValueError(f"actions of shape {actions.shape} for {self.num_envs} environments")
        self._each(self._step_game, actions.tolist())
        observations, infos = self._seen()
        for index, final in enumerate(self._final):
            if final is not None:
                infos = self._add_info(infos, {"final_obs": final, "final_info": {}}, index)
        results = (self._rewards.copy(), self._terminations.copy(), self._truncations.copy())
        return observations, *results, infos

    def step_games(
        self, games: slice, actions: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[int, np.ndarray]]:
        """Act in these games only, one after the other, in the calling thread.

        Several threads may do so at once, each in games of its own: then none waits for all others, as in
        `step`. The new observations are in `images`, `masks` and `mask_weights`.

        Returns:
            Rewards, terminations and truncations of these games, views that their next step overwrites, and
            the last real images of the episodes that ended, by their place among these games.
        """
        for index, action in zip(range(self.num_envs)[games], actions, strict=True):
            self._step_game(index, action)
            self._project(index)
        self._weigh(games)
        last_images = {place: final["image"] for place, final in enumerate(self._final[games]) if final}
        return self._rewards[games], self._terminations[games], self._truncations[games], last_images

    def finished_episodes(self) -> list[Episode]:
        """Return the episodes that have ended since the last call, in the order of their ends."""
        episodes, self._episodes = self._episodes, []
        return sorted(episodes)

    @property
    def restarts(self) -> int:
        """Number of engines that have been replaced."""
        return sum(env.restarts for env in self.envs)

    def render(self) -> tuple[Any, ...]:
        """Return each environment's newest frame, as `DoomEnv.render`."""
        return tuple(env.render() for env in self.envs)

    def state_dict(self) -> dict[str, Any]:
        """Return each environment's exact state."""
        return {"envs": [env.state_dict() for env in self.envs]}

    def load_state_dict(self, state: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Replay to the states of `state_dict`, and return observations and infos as `reset` does."""
        self._each(lambda game, its_state: self.envs[game].load_state_dict(its_state), state["envs"])
        return self._seen()

    def close_extras(self, **kwargs: Any) -> None:
        """End all engines and threads; safe to call at any time."""
        self._threads.shutdown(wait=True, cancel_futures=True)  # none may be inside a game that is closed
        for env in self.envs:
            env.close()

    def _each(self, function: Callable[[int, Any], object], arguments: Sequence[Any]) -> None:
        def run(index: int, argument: Any) -> None:
            function(index, argument)
            self._project(index)

        running = [self._threads.submit(run, *pair) for pair in enumerate(arguments)]
        wait(running)  # for all of them, also where one failed: no thread may go on behind the caller's back
        for future in running:
            future.result()
        self._weigh(slice(None))

    def _step_game(self, index: int, action: int) -> None:
        env = self.envs[index]
        self._rewards[index], self._terminations[index], self._truncations[index] = env.advance(action)
        self._final[index] = None
        if self._terminations[index] or self._truncations[index]:
            self._final[index] = {"image": env.image.copy(), "mask": env.mask.copy()}
            self._episodes.append(Episode(env.steps, env.episode_return, env.episode_length))
            env.begin_episode()

    def _project(self, index: int) -> None:
        if self._projection is not None:
            self._mask_sums[index] = self._projection(self.masks[index], self.envs[index].mask_box)

    def _weigh(self, games: slice) -> None:
        if self._projection is not None:
            self.mask_weights[games] = self._projection.weights(self._mask_sums[games])

    def _seen(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Copies of the newest observations, and infos."""
        infos = {"mask_weights": self.mask_weights.copy()} if self._projection else {}
        return {"image": self.images.copy(), "mask": self.masks.copy()}, infos
