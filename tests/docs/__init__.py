"""Every code block of the README and of the pages in docs/ is executed, or checked by what reads its language.

`page.py` takes the pages apart, `place.py` is where their code runs, `console.py` types the commands, `browser.py` drives Chromium,
and `checks.py` reads what isn't run. There is a test for each page and kind of code; that each of them can fail is shown in
`test_broken.py`.

How blocks are written:

* `python`: runs, all of a page from top to bottom in one namespace. Where it defines tests, these are run by pytest.
* `{code-block} python` (or another language) with `:caption: app.py`: a file of that name in the reader's folder, from there on. A
  page without a file `app.py` has its `python` blocks as `app.py`.
* `console`: `$ ` begins a command, which bash runs in the reader's folder; the lines after it are all that it shows, `…` being
  anything, and alone on its line any lines. Without such lines it only has to succeed. Servers and streams stay until the page's
  end, or until the same server is started again; of those, the lines are the first ones that they show. Lines before a block's
  first `$ ` are what the last stream shows next. Ports are others in truth, so a page may name 8000, 5000 and 6379.
* `html`, `js`: a document in Chromium, on the server of the page's `app`, or of `stand_in.py` where the page has none. The origins
  `https://app.example.com` and `https://api.example.com` are that server too: the first the document's own, the second another.
* `json`, `yaml`, `toml`, `ini`, `nginx`, `haproxy`, `caddy`: read by what reads them.
* `text`: what isn't code, and nobody copies.
"""
