"""The tests of the pages can fail: each kind of block, broken, is told by its page and line."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from tests.docs import checks, console, page, stand_in
from tests.docs.browser import Visitor, served
from tests.docs.console import Console
from tests.docs.page import Block
from tests.docs.place import Place


def blocks_of(tmp_path: Path, text: str) -> tuple[Block, ...]:
    """The blocks of a page with this text."""
    path = tmp_path / "page.md"
    path.write_text(textwrap.dedent(text))
    return page.blocks(path)


class TestPage:
    """A page's blocks."""

    def test_each_form(self, tmp_path: Path) -> None:
        """Fences of both kinds, directives with options, blocks in lists and in other directives are found, with their lines."""
        (tmp_path / "shown.py").write_text("shown = 1\n")
        found = blocks_of(
            tmp_path,
            """\
            # A page

            ```python
            x = 1
            ```

            - in a list:

              ```{code-block} python
              :caption: app.py
              :emphasize-lines: 1

              y = 2
              ```

            ~~~~json
            {}
            ~~~~

            :::{code-block} toml
            ---
            caption: a.toml
            ---
            a = 1
            :::

            ````{note}
            :class: x

            Inside:

            ```console
            $ true
            ```
            ````

            ::::{tab-set}
            :::{tab-item} One
            ```js
            1;
            ```
            :::
            ::::

            ```{literalinclude} shown.py
            :language: python
            ```

            ```{toctree}
            other
            ```

            ````text
            ```python
            no block of its own
            ```
            ````
            """,
        )
        lines = (tmp_path / "page.md").read_text().splitlines()
        assert [(each.language, each.text.splitlines()[0], each.file) for each in found] == [
            ("python", "x = 1", None),
            ("python", "y = 2", "app.py"),
            ("json", "{}", None),
            ("toml", "a = 1", "a.toml"),
            ("console", "$ true", None),
            ("js", "1;", None),
            ("python", "shown = 1", None),
            ("text", "```python", None),
        ]
        assert all(lines[each.line - 1].strip() == each.text.splitlines()[0] for each in found if each.included is None)

    @pytest.mark.parametrize(
        ("text", "language"),
        [
            ("```\n$ ls\n```", ""),
            ("Text:\n\n    indented = 1\n", "indented"),
            ("<pre>\nx\n</pre>", "html block"),
            ("```{eval-rst}\n.. code-block:: python\n\n   x\n```", "eval-rst"),
            ("```cobol\nx\n```", "cobol"),
        ],
    )
    def test_code_that_nothing_runs(self, tmp_path: Path, text: str, language: str) -> None:
        """Code in a form that has no runner is a block all the same, so that it is complained of."""
        (block,) = blocks_of(tmp_path, text)
        assert block.language == language and language not in checks.CHECKS


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("json", '{"a": 1,}'),
        ("yaml", "a: [1"),
        ("toml", "a = "),
        ("ini", "no section"),
        ("text", "  $ pip install sseflask"),
        ("nginx", "proxy_bufering off;"),
        ("haproxy", "defaults\n  mode htp\n"),
        ("caddy", "example.org {\n  reverse_prox 127.0.0.1:8000\n}"),
        ("python", "def f(:"),
    ],
)
def test_what_is_read(tmp_path: Path, language: str, text: str) -> None:
    """A mistake in a block that is read is told."""
    (block,) = blocks_of(tmp_path, f"# T\n\n```{language}\n{text}\n```\n")
    with pytest.raises(AssertionError, match=r"page\.md:4: "):
        checks.check(block, tmp_path)


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("nginx", "proxy_buffering off;"),
        ("nginx", "# here\nlocation /events {\n  proxy_pass http://127.0.0.1:8000;\n}"),
        ("nginx", "upstream app {\n  server 127.0.0.1:8000;\n}"),
        ("haproxy", "backend app\n  mode http\n  timeout connect 1s\n  timeout server 1s\n  server one 127.0.0.1:8000\n"),
        ("caddy", "example.org {\n  reverse_proxy 127.0.0.1:8000\n}"),
        ("ini", "[Service]\nEnvironment=A=1\nEnvironment=B=%h\n"),
    ],
)
def test_parts_of_configurations(tmp_path: Path, language: str, text: str) -> None:
    """What is right is taken, parts of a file too."""
    (block,) = blocks_of(tmp_path, f"```{language}\n{text}\n```\n")
    checks.check(block, tmp_path)


def test_python(tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of a Python block is told, with the line in the traceback."""
    blocks = blocks_of(tmp_path, "```python\nx = 1\n```\n\nText.\n\n```python\nx += 1\nx / 0\n```\n")
    with pytest.raises(AssertionError, match=r"page\.md:8: .*ZeroDivisionError") as raised:
        place.run_python(blocks, monkeypatch)
    cause = raised.value.__cause__
    assert cause is not None and cause.__traceback__ is not None and cause.__traceback__.tb_next is not None
    assert cause.__traceback__.tb_next.tb_lineno == 9


class TestConsole:
    """Commands."""

    def run(self, place: Place, tmp_path: Path, text: str) -> None:
        """Types what a page with these lines in a console block says."""
        terminals = Console(place)
        try:
            for block in blocks_of(tmp_path, text):
                terminals.run(block)
            terminals.finish()
        finally:
            terminals.close()

    def test_what_holds(self, tmp_path: Path, place: Place) -> None:
        """Output is compared, `…` stands for anything, variables and the folder stay, a stream goes on in a later block."""
        self.run(
            place,
            tmp_path,
            """\
            ```console
            $ mkdir one && cd one && export GREETING="hello world"
            $ echo "$GREETING"; \\
            > basename "$PWD"; seq 9
            hello …
            one
            …
            8
            9
            $ echo first >file
            $ curl -N "file://$PWD/file"; while [ ! -e done ]; do sleep 0.05; done; echo second
            first
            $ touch done
            ```

            ```console
            second
            ```
            """,
        )

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("$ true\n$ false", r"page\.md:3: \$ false\nit has ended, with 1"),
            ("$ echo one\ntwo", r"page\.md:2: .*\nexpected:\ntwo\nshown:\none"),
            ("$ echo one; echo two\none", "shown:\none\ntwo"),
            ("$ no-such-command", "command not found"),
            ("$ gunicorn -k sseflask.worker.StreamWorker nothing:app", "No module named 'nothing'"),
            ("$ curl -N http://127.0.0.1:8000/", "connect"),
            ("$ pip install 'sseflask[reddis]'", "no such extra"),
            ("$ pip install left-pad", "no package of setup.cfg"),
            ("$ make coffee", "no such target"),
            ("$ . .venv/bin/activate && false", "one command a line"),
            ("more of a stream", "no stream is being shown"),
        ],
    )
    def test_what_fails(self, tmp_path: Path, place: Place, text: str, told: str) -> None:
        """A command that fails, or shows something else, is told with what it has shown."""
        with pytest.raises(AssertionError, match=told):
            self.run(place, tmp_path, f"```console\n{text}\n```\n")

    def test_what_does_not_end(self, tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        """A command that never ends is ended, and so is a stream that never shows what is expected."""
        monkeypatch.setattr(console, "PATIENCE", 0.2)
        with pytest.raises(AssertionError, match="named in SERVERS or STREAMS"):
            self.run(place, tmp_path, "```console\n$ sleep 1000\n```\n")


@pytest.mark.parametrize(
    ("language", "text", "told"),
    [
        ("js", 'fetch("/token"); nothing.there();', "uncaught: nothing is not defined"),
        ("js", 'new EventSource("/no-such-stream");', "404"),
        ("js", "const x = 1;", "asks the app for nothing"),
        ("html", '<script type="module" src="/events/-/clinet.js"></script>', "400"),
    ],
)
def test_browser(tmp_path: Path, place: Place, request: pytest.FixtureRequest, language: str, text: str, told: str) -> None:
    """An error in the browser, and an answer that isn't one, is told."""
    (block,) = blocks_of(tmp_path, f"```{language}\n{text}\n```\n")
    app, port, complaints = stand_in.make_app(), place.port("8000"), request.getfixturevalue("console")
    with served(app, port) as documents:
        visitor = Visitor(request.getfixturevalue("page"), complaints, app, documents)
        with pytest.raises(AssertionError, match=rf"page\.md:2: (.|\n)*{told}"):
            visitor.run(block, text, f"http://127.0.0.1:{port}")
        visitor.leave()
    complaints.allow("")
