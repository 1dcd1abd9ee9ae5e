"""What refusals are about and what they say: tests name the key, one list for all tests holds the wording.

The list is ``tests/messages.json``, from a test's id to its sentence or sentences. A test that ends well must have said
just these; ``pytest --update-messages`` writes down what is said now instead.
"""

import contextlib
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pytest

from robolearn.errors import UserError, first_line, one_line

OPTION = "--update-messages"
TESTS = Path(__file__).resolve().parents[1]
LIST = TESTS / "messages.json"


@dataclass
class Refusal:
    """What was refused, known when the ``with`` has ended.

    Attributes:
        error: The error.
        status: The exit status of a command that ended because of it; None where the error itself was raised.
    """

    error: UserError = field(init=False)
    status: int | None = None


class Refuses(Protocol):
    """The fixture `refuses`."""

    def __call__(
        self, key: str | Path | None, varying: str | None = None
    ) -> contextlib.AbstractContextManager[Refusal]:
        """Expect a `UserError`, or the status 2 of a command that ends because of one.

        Args:
            key: The dotted key, or the file, that it must be about.
            varying: A regular expression for what differs from one machine or version of a library to the next; it is
                left out of the list. So are paths and the words of exceptions that the error comes from.
        """
        ...


class Messages:
    """A plugin that compares what each test's refusals say with the list."""

    def __init__(self, update: bool) -> None:
        self.update = update
        self.listed: dict[str, str | list[str]] = read()
        self.said: dict[str, list[str]] = {}
        self.now: dict[str, list[str]] = {}
        self.collected: set[str] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> Iterator[None]:
        result = yield
        test, said = pyfuncitem.nodeid, self.said.pop(pyfuncitem.nodeid, [])
        listed = self.listed.get(test, [])
        listed = [listed] if isinstance(listed, str) else listed
        if self.update:
            self.now[test] = said
        elif said != listed:
            was, now = ("\n".join(f"  {text}" for text in texts or ["(nothing)"]) for texts in (listed, said))
            command = f"pytest -n 0 {OPTION} '{test}'"
            pytest.fail(f"{LIST.name} has\n{was}\nand the test says\n{now}\nIf that is meant: {command}", pytrace=False)
        return result

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self.collected = {item.nodeid for item in items}

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not self.update:
            return
        files = {test.split("::")[0] for test in self.collected}
        whole = not any("::" in arg for arg in session.config.args)

        def is_gone(test: str) -> bool:
            file = test.split("::")[0]
            return not (TESTS.parent / file).exists() or (whole and file in files and test not in self.collected)

        now = {test: said[0] if len(said) == 1 else said for test, said in self.now.items() if said}
        kept = {test: said for test, said in read().items() if test not in self.now and not is_gone(test)}
        LIST.write_text(json.dumps(kept | now, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def read() -> dict[str, str | list[str]]:
    """The list as it is."""
    return json.loads(LIST.read_text()) if LIST.exists() else {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(OPTION, action="store_true", help=f"write what refusals say now to tests/{LIST.name}")


def pytest_configure(config: pytest.Config) -> None:
    update = bool(config.getoption(OPTION))
    if update and config.getoption("numprocesses", None):
        raise pytest.UsageError(f"{OPTION} needs all tests in one process: -n 0")
    config.pluginmanager.register(Messages(update), "messages")


@pytest.fixture
def refuses(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Refuses:
    """Expect a refusal: ``with refuses("policy.horizon"): ...``."""
    messages: Messages = request.config.pluginmanager.get_plugin("messages")  # type: ignore[assignment]

    @contextlib.contextmanager
    def expect(key: str | Path | None, varying: str | None = None) -> Iterator[Refusal]:
        refusal = Refusal()
        with pytest.raises((UserError, SystemExit)) as caught:
            yield refusal
        if isinstance(caught.value, SystemExit):
            assert caught.value.code == 2
            refusal.status = 2
        refusal.error = error = _user_error(caught.value)
        assert error.key == (key if key is None else str(key)), f"about {error.key}: {error}"
        assert "\n" not in str(error)
        sentence = neutral(error, tmp_path_factory.getbasetemp())
        said = re.sub(varying, "…", sentence) if varying else sentence
        messages.said.setdefault(request.node.nodeid, []).append(said)

    return expect


def _user_error(error: BaseException | None) -> UserError:
    """The error itself, or the one that a command ended for."""
    cause = error
    while not isinstance(cause, UserError):
        assert cause is not None, f"{error!r} comes from no UserError"
        cause = cause.__cause__ or cause.__context__
    return cause


def neutral(error: UserError, temporary: Path) -> str:
    """The sentence without what only this machine, or this version of a library, says.

    Args:
        error: The error; the words of an exception that it was raised from are left out.
        temporary: The folder that holds the tests' temporary folders.
    """
    text, cause = str(error), error.__cause__
    seen: list[BaseException] = [error]  # a part's own error, as Hydra passes it on, is its cause's cause
    while cause is not None and cause not in seen:
        if not isinstance(cause, (UserError, KeyError)):
            for words in (one_line(cause), first_line(cause)):
                text = text.replace(words, "<reason>") if words != type(cause).__name__ else text
        seen.append(cause)
        cause = cause.__cause__
    text = re.sub(r"[^\s(]*/(site|dist)-packages/", "<packages>/", text)
    text = re.sub(rf"{re.escape(str(temporary))}/[\w-]+\d", "<tmp>", text)
    folders = {Path.cwd(): "<cwd>", TESTS.parent: "<repo>", Path(sys.prefix): "<prefix>", Path.home(): "~"}
    for folder, name in folders.items():
        text = re.sub(rf"{re.escape(str(folder))}(?![\w-])", name, text)
    return re.sub(r"(\.py):\d+", r"\1", text)
