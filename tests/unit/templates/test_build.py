"""A build's steps: in which sandbox each runs and with what, what need not run again, where it fails."""

from pathlib import Path

import pytest
from tests.fakes.workshop import FakeWorkshop

from cloche_server.templates.build import MOST_LAYERS, Base, Builder, Kept, Target
from cloche_server.templates.step_run import BuildFailed
from cloche_server.templates.steps import Context, Description, Stage, Step, check
from cloche_server.templates.workshop import Finished
from cloche_wire.errors import DeadlineExceeded, InvalidArgument, TemplateNotFound, Unauthenticated

pytestmark = pytest.mark.anyio

HASH = "a" * 64
BASE = Base("build:1", ("root",), Context(env={"PATH": "/bin"}), "serve", "true")


class Around:
    """What a builder speaks to beside the workshop: bases, memory, log."""

    def __init__(self) -> None:
        self.base = BASE
        self.kept: dict[str, Kept] = {}
        self.lines: list[tuple[str, str, str]] = []

    async def of_template(self, reference: str) -> Base:
        if reference != "base":
            raise TemplateNotFound(f"template '{reference}' not found")
        return self.base

    async def of_image(self, description: Description) -> Base:
        assert description.from_image == "e2bdev/base"
        return BASE._replace(start_cmd="", ready_cmd="", needless=frozenset({"start what we have"}))

    async def find(self, key: str) -> Kept | None:
        return self.kept.get(key)

    async def keep(self, key: str, kept: Kept) -> None:
        self.kept[key] = kept

    async def write(self, message: str, step: str, level: str = "info") -> None:
        self.lines.append((step, level, message))


@pytest.fixture
def workshop() -> FakeWorkshop:
    return FakeWorkshop()


@pytest.fixture
def around() -> Around:
    return Around()


async def build(workshop: FakeWorkshop, around: Around, description: Description, uploads: Path) -> Finished:
    (uploads / HASH).write_bytes(b"an archive")
    target = Target("t" * 20, "b", "team", "name", 2, 1024)
    builder = Builder(target, uploads, workshop=workshop, bases=around, memory=around, log=around)
    return await builder.make(description)


def described(*steps: Step, **more: object) -> Description:
    return Description(steps=list(steps), **more)  # type: ignore[arg-type]


async def test_steps_run_with_what_those_before_them_said(
    workshop: FakeWorkshop, around: Around, tmp_path: Path
) -> None:
    made = await build(
        workshop,
        around,
        described(
            Step("ENV", ["A", "1", "B", "$PATH:/opt"]),
            Step("RUN", ["first"]),
            Step("WORKDIR", ["/srv/$A"]),
            Step("USER", ["worker"]),
            Step("RUN", ["second"]),
            Step("RUN", ["third", "root"]),
            Step("WORKDIR", ["deeper"]),
        ),
        tmp_path,
    )
    runs = {command.argv[-1]: command for command in workshop.ran if command.argv[0] == "/bin/bash"}
    assert runs["first"].argv == ["/bin/bash", "-l", "-c", "first"]
    assert (runs["first"].user, runs["first"].workdir) == ("user", "")
    assert runs["first"].env == {"PATH": "/bin", "A": "1", "B": "/bin:/opt"}
    assert (runs["second"].user, runs["second"].workdir) == ("worker", "/srv/1")
    assert (runs["third"].user, runs["third"].workdir) == ("root", "/srv/1")
    assert made.layers == ("layer4", "layer3", "layer2", "layer1", "root")
    assert (made.default_user, made.default_workdir) == ("worker", "/srv/1/deeper")
    assert made.env == runs["second"].env
    assert workshop.published == [made]
    assert workshop.open == 0


async def test_words_share_the_sandbox_of_the_step_after_them(
    workshop: FakeWorkshop, around: Around, tmp_path: Path
) -> None:
    steps = [
        Step("USER", ["root"]),
        Step("WORKDIR", ["/app"]),
        Step("RUN", ["make"]),
        Step("ENV", ["A", "1"]),
    ]
    await build(workshop, around, described(*steps), tmp_path)
    assert [setting.layers for setting in workshop.settings] == [("root",)]


async def test_what_has_run_before_does_not_run_again(
    workshop: FakeWorkshop, around: Around, tmp_path: Path
) -> None:
    first = described(Step("USER", ["root"]), Step("RUN", ["one"]), Step("RUN", ["two"]))
    before = await build(workshop, around, first, tmp_path)
    workshop.ran.clear()
    again = await build(workshop, around, first, tmp_path)
    assert again.layers == before.layers
    assert again.default_user == "root"
    assert workshop.ran == []
    assert ("2", "info", "[2/3] CACHED RUN one") in around.lines
    changed = described(Step("USER", ["root"]), Step("RUN", ["one"]), Step("RUN", ["three"]))
    made = await build(workshop, around, changed, tmp_path)
    assert workshop.commands == ["three"]
    assert made.layers[1:] == before.layers[1:]


async def test_a_long_chain_is_squashed_and_its_base_stays_shared(
    workshop: FakeWorkshop, around: Around, tmp_path: Path
) -> None:
    many = described(*(Step("RUN", [str(number)]) for number in range(250)))
    made = await build(workshop, around, many, tmp_path)
    assert len(workshop.settings) == 250, "each step has a sandbox of its own"
    assert max(len(setting.layers) for setting in workshop.settings) == MOST_LAYERS
    assert made.layers[-1] == "root"
    assert [len(layers) for layers in workshop.squashed] == [MOST_LAYERS] * 2
    assert workshop.squashed[1][-1] == "squashed1"
    assert "root" not in {layer for layers in workshop.squashed for layer in layers}
    again = await build(workshop, around, many, tmp_path)
    assert again.layers == made.layers
    assert len(workshop.squashed) == 2, "what was squashed is known with its step"


@pytest.mark.parametrize(("depth", "squashed"), [(80, [50]), (60, [31])])
async def test_a_template_of_a_template_of_a_template_never_has_too_many_layers(
    workshop: FakeWorkshop, around: Around, tmp_path: Path, depth: int, squashed: list[int]
) -> None:
    """Of its base's layers only where its own are too few to make room."""
    around.base = BASE._replace(layers=tuple(f"base{number}" for number in range(depth)))
    steps = [Step("RUN", [str(number)]) for number in range(35)]
    made = await build(workshop, around, described(*steps, from_template="base"), tmp_path)
    assert [len(layers) for layers in workshop.squashed] == squashed
    assert len(made.layers) <= MOST_LAYERS
    assert made.layers[-1] == f"base{depth - 1}"


async def test_a_base_without_room_for_a_step_is_squashed_once(
    workshop: FakeWorkshop, around: Around, tmp_path: Path
) -> None:
    around.base = BASE._replace(layers=tuple(f"base{number}" for number in range(99)))
    for word in ("one", "two"):
        await build(workshop, around, described(Step("RUN", [word]), from_template="base"), tmp_path)
    assert [len(layers) for layers in workshop.squashed] == [50]
    assert {len(setting.layers) for setting in workshop.settings} == {50}


async def test_force_runs_a_step_and_all_after_it_again(
    workshop: FakeWorkshop, around: Around, tmp_path: Path
) -> None:
    steps = [Step("RUN", ["one"]), Step("RUN", ["two"]), Step("RUN", ["three"])]
    await build(workshop, around, described(*steps), tmp_path)
    workshop.ran.clear()
    steps[1] = Step("RUN", ["two"], force=True)
    forced = await build(workshop, around, described(*steps), tmp_path)
    assert workshop.commands == ["two", "three"]
    workshop.ran.clear()
    plain = [Step("RUN", ["one"]), Step("RUN", ["two"]), Step("RUN", ["three"])]
    assert (await build(workshop, around, described(*plain), tmp_path)).layers == forced.layers
    assert workshop.ran == []
    await build(workshop, around, described(*plain, force=True), tmp_path)
    assert workshop.commands == ["one", "two", "three"]


async def test_files_go_where_the_step_says(workshop: FakeWorkshop, around: Around, tmp_path: Path) -> None:
    await build(
        workshop,
        around,
        described(
            Step("COPY", ["src/*.py", "app/", "", ""], HASH),
            Step("WORKDIR", ["/srv"]),
            Step("COPY", ["a.txt", "b.txt", "worker", "0644"], HASH),
            Step("COPY", ["*", "/x", "a:b"], HASH),
        ),
        tmp_path,
    )
    assert [tuple(files)[1:] for files in workshop.copied] == [
        ("src", "/home/user/app/", "user:user", ""),
        ("a.txt", "/srv/b.txt", "worker:worker", "0644"),
        (".", "/x", "a:b", ""),
    ]
    assert workshop.copied[0].archive == tmp_path / HASH


async def test_relative_paths_begin_where_the_image_says_that_a_user_is_at_home(
    workshop: FakeWorkshop, around: Around, tmp_path: Path
) -> None:
    """System users are at home elsewhere than below /home; and who has no home has no relative paths."""
    workshop.homes["daemon"] = ["/usr/sbin"]
    steps = [Step("USER", ["daemon"]), Step("COPY", ["a", "b", "", ""], HASH), Step("WORKDIR", ["deeper"])]
    made = await build(workshop, around, described(*steps), tmp_path)
    assert [copied.target for copied in workshop.copied] == ["/usr/sbin/b"]
    assert (made.default_user, made.default_workdir) == ("daemon", "/usr/sbin/deeper")
    steps = [Step("USER", ["nobody"]), Step("COPY", ["a", "b", "", ""], HASH)]
    with pytest.raises(BuildFailed, match="nobody") as failed:
        await build(workshop, around, described(*steps), tmp_path)
    assert failed.value.step == "2"


async def test_without_a_folder_of_their_own_sandboxes_begin_at_home(
    workshop: FakeWorkshop, around: Around, tmp_path: Path
) -> None:
    """Wherever that is: the agent asks the image."""
    made = await build(workshop, around, described(Step("USER", ["worker"])), tmp_path)
    assert (made.default_user, made.default_workdir) == ("worker", "")


@pytest.mark.parametrize(
    ("description", "step", "part"),
    [
        (described(from_template="none"), "base", "not found"),
        (
            described(Step("RUN", ["true"]), Step("RUN", ["bad"])),
            "2",
            "failed to run command 'bad': exit status 3",
        ),
        (described(Step("ENV", ["A", "1"]), Step("RUN", ["slow"])), "2", "too long"),
        (described(Step("RUN", ["true"]), start_cmd="unready"), "finalize", "not ready"),
    ],
)
async def test_a_failure_names_its_step_and_publishes_nothing(
    workshop: FakeWorkshop, around: Around, tmp_path: Path, description: Description, step: str, part: str
) -> None:
    workshop.fails["bad"] = 3
    workshop.breaks["slow"] = DeadlineExceeded("it ran too long")
    workshop.fails_publish = InvalidArgument("not ready in time") if description.start_cmd else None
    with pytest.raises(BuildFailed, match=part) as raised:
        await build(workshop, around, description, tmp_path)
    assert raised.value.step == step
    assert workshop.published == []
    assert workshop.open == 0


async def test_a_step_that_failed_runs_again_the_next_time_and_those_before_it_do_not(
    workshop: FakeWorkshop, around: Around, tmp_path: Path
) -> None:
    workshop.fails["two"] = 1
    for _ in range(2):
        with pytest.raises(BuildFailed):
            await build(workshop, around, described(Step("RUN", ["one"]), Step("RUN", ["two"])), tmp_path)
    assert workshop.commands == ["one", "two", "two"]


async def test_what_a_command_writes_is_logged_with_its_step(
    workshop: FakeWorkshop, around: Around, tmp_path: Path
) -> None:
    workshop.prints["make"] = ["cc -c a.c", "cc -c b.c"]
    await build(workshop, around, described(Step("RUN", ["true"]), Step("RUN", ["make"])), tmp_path)
    assert around.lines[2:] == [
        ("2", "info", "[2/2] RUN make"),
        ("2", "info", "cc -c a.c"),
        ("2", "info", "cc -c b.c"),
        ("finalize", "info", "Finalizing the template"),
    ]


async def test_start_and_ready_commands_come_from_the_description_or_its_template(
    workshop: FakeWorkshop, around: Around, tmp_path: Path
) -> None:
    inherited = await build(workshop, around, described(from_template="base"), tmp_path)
    assert (inherited.start_cmd, inherited.ready_cmd) == ("serve", "true")
    own = await build(workshop, around, described(from_template="base", start_cmd="run"), tmp_path)
    assert (own.start_cmd, own.ready_cmd) == ("run", "sleep 20")
    none = await build(workshop, around, described(), tmp_path)
    assert (none.start_cmd, none.ready_cmd) == ("", "")


@pytest.mark.parametrize(("ready", "kept"), [("", ""), ("sleep 20", ""), ("curl health", "curl health")])
async def test_what_the_image_starts_and_we_have_running_is_left_out(
    workshop: FakeWorkshop, around: Around, tmp_path: Path, ready: str, kept: str
) -> None:
    """And the log says so; twin: of a template of one's own it is a command like any other."""
    asked = described(start_cmd="start what we have", ready_cmd=ready)
    made = await build(workshop, around, asked, tmp_path)
    assert (made.start_cmd, made.ready_cmd) == ("", kept)
    said = "Runs in every sandbox without a start command: start what we have"
    assert ("finalize", "info", said) in around.lines
    own = described(from_template="base", start_cmd="start what we have", ready_cmd=ready)
    assert (await build(workshop, around, own, tmp_path)).start_cmd == "start what we have"


@pytest.mark.parametrize(
    ("asked", "of_base", "expected"),
    [("", "", ""), ("gvisor", "", "gvisor"), ("", "gvisor", "gvisor"), ("container", "gvisor", "gvisor")],
)
async def test_steps_and_sandboxes_have_the_strongest_isolation_that_is_asked_for(
    workshop: FakeWorkshop,
    around: Around,
    tmp_path: Path,
    asked: str,
    of_base: str,
    expected: str,
) -> None:
    """By the description, or by what it is made from."""
    around.base = BASE._replace(isolation=of_base)
    step = Step("RUN", ["one"])
    made = await build(workshop, around, described(step, from_template="base", isolation=asked), tmp_path)
    assert made.isolation == expected
    assert [setting.isolation for setting in workshop.settings] == [expected]


async def test_a_stage_gives_files_and_none_of_its_layers(
    workshop: FakeWorkshop, around: Around, tmp_path: Path
) -> None:
    stage = Stage("tools", from_template="base", steps=[Step("RUN", ["compile"])])
    step = Step("COPY_FROM", ["tools", "/out/*", "/usr/bin/", "", ""])
    made = await build(workshop, around, described(step, Step("RUN", ["use"]), stages=[stage]), tmp_path)
    # The stage's step; the gathering on it; the placing on what was gathered; the next step on that.
    compiled, gathered, placed = "layer1", "layer2", "layer3"
    assert [setting.layers for setting in workshop.settings] == [
        ("root",),
        (compiled, "root"),
        (gathered, "root"),
        (placed, "root"),
    ]
    assert made.layers == ("layer4", placed, "root")
    workshop.ran.clear()
    await build(workshop, around, described(step, Step("RUN", ["use"]), stages=[stage]), tmp_path)
    assert workshop.ran == []


async def test_a_command_of_a_user_that_is_not_there_fails_as_clients_know_it(
    workshop: FakeWorkshop, around: Around, tmp_path: Path
) -> None:
    workshop.breaks["whoami"] = Unauthenticated("invalid username: 'root123'")
    with pytest.raises(BuildFailed) as failed:
        await build(workshop, around, described(Step("RUN", ["whoami", "root123"])), tmp_path)
    assert failed.value.message == (
        "failed to run command 'whoami': command failed: unauthenticated: invalid username: 'root123'"
    )


async def test_what_sandboxes_have_imported_is_that_of_the_base_and_what_a_build_adds(
    workshop: FakeWorkshop, around: Around, tmp_path: Path
) -> None:
    """It is tried in a sandbox of the finished layers; what fails there is told, and is no failure."""
    plain = await build(workshop, around, described(Step("RUN", ["one"])), tmp_path)
    assert plain.warm == BASE.warm
    workshop.prints["no_such"] = ['["no_such cannot be imported"]']
    made = await build(
        workshop, around, described(Step("RUN", ["two"]), preload=["numpy", "polars", "no_such"]), tmp_path
    )
    assert made.warm == (*BASE.warm, "polars", "no_such")
    assert made.warnings == ("no_such cannot be imported",)
    assert workshop.settings[-1].layers == made.layers
    assert workshop.ran[-1].argv[-4:] == ["named", "numpy", "polars", "no_such"]
    assert ("finalize", "warn", "no_such cannot be imported") in around.lines


@pytest.mark.parametrize("modules", [["os; import x"], ["a..b"], [""], ["m" * 200], ["a"] * 65])
def test_what_is_no_module_is_not_preloaded(modules: list[str]) -> None:
    with pytest.raises(InvalidArgument, match="module"):
        check(Description(preload=modules))


async def test_layers_of_a_file_are_applied_each_once(
    workshop: FakeWorkshop, around: Around, tmp_path: Path
) -> None:
    steps = [Step("LAYER", ["layers/000.tar"], HASH), Step("LAYER", ["layers/001.tar"], "b" * 64)]
    first = await build(workshop, around, described(*steps), tmp_path)
    assert workshop.applied == [HASH, "b" * 64]
    assert first.layers == ("layer2", "layer1", "root")
    again = await build(workshop, around, described(*steps), tmp_path)
    assert (workshop.applied, again.layers) == ([HASH, "b" * 64], first.layers)
