"""What the site shows of the repository outside docs/: whole documents, sections of the README, and linked files.

A page of docs/ links to `../recipes/online.yaml`, which is right on disk; here that becomes a link to a page with the
file's text. `<!-- README.md#rewards -->` stands for the text of that section.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
# in the repository → in the site
DOCUMENTS = {
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks/README.md",
    "benchmarks/results.md": "benchmarks/results.md",
    "recipes/README.md": "recipes/README.md",
    "recipes/accelerate/README.md": "recipes/accelerate/README.md",
    "recipes/atropos/README.md": "recipes/atropos/README.md",
}
_FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_SECTION = re.compile(r"<!-- (README\.md)#([\w-]+) -->")
_LINK = re.compile(r"(?<=\]\()(?!https?:)([^)#\s]*)(#[^)\s]*)?(?=\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page for each document, and for each file that some page links to."""
    for source, place in DOCUMENTS.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    for file in list(files.documentation_pages()):
        for path in _linked_files(file.content_string, _origin(file.src_uri)):
            if files.get_file_from_path(_place(path)) is None:
                files.append(File.generated(config, _place(path), content=_source_page(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Sections of the README in the place of their names, and all for the site."""
    if page.file.src_uri.startswith("files/"):
        return markdown
    here, sections = page.file.src_uri, _places_of_sections(files)
    markdown = _for_the_site(markdown, _origin(here), here, sections)
    return _SECTION.sub(lambda name: _for_the_site(_section(name[2]), name[1], here, sections), markdown)


def _origin(place: str) -> str:
    """The path in the repository of a page of the site."""
    of_documents = {there: source for source, there in DOCUMENTS.items()}
    return of_documents.get(place, f"docs/{place}")


def _place(path: str) -> str:
    """The page of the site for a path in the repository."""
    if path in DOCUMENTS:
        return DOCUMENTS[path]
    if path == "README.md":
        return "index.md"
    return path.removeprefix("docs/") if re.match(r"docs/.*(?<!\.py)$", path) else f"files/{path}.md"


def _section(slug: str) -> str:
    """Of the README, without its heading."""
    for section in re.split(r"^## ", (ROOT / "README.md").read_text(), flags=re.MULTILINE)[1:]:
        heading, _, text = section.partition("\n")
        if _slug(heading) == slug:
            return text.strip()
    raise ValueError(f"README.md has no section #{slug}")


def _slug(heading: str) -> str:
    return re.sub(r"[^\w-]", "", heading.strip().lower().replace(" ", "-"))


def _places_of_sections(files: Files) -> dict[str, str]:
    """Slug → the page that shows that section of the README."""
    pages = [file for file in files.documentation_pages() if not file.src_uri.startswith("files/")]
    return {slug: file.src_uri for file in pages for _, slug in _SECTION.findall(file.content_string)}


def _linked_files(markdown: str, origin: str) -> set[str]:
    """Paths in the repository of what the text, and the sections in it, link to."""
    texts = [(markdown, origin), *((_section(slug), name) for name, slug in _SECTION.findall(markdown))]
    prose = [(part, path) for text, path in texts for part in _FENCED.split(text)[::2]]
    return {_resolved(target, path) for part, path in prose for target, _ in _LINK.findall(part) if target}


def _resolved(target: str, origin: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))


def _for_the_site(markdown: str, origin: str, here: str, sections: dict[str, str]) -> str:
    """A text that was written for the path `origin`, with the links that are right on the page `here`.

    And with nested lists indented as Python-Markdown reads them. What is fenced stays.
    """

    def rewritten(link: re.Match[str]) -> str:
        target, anchor = link[1], link[2] or ""
        path = _resolved(target, origin) if target else origin
        if path == "README.md" and anchor:
            if anchor[1:] not in sections:
                raise ValueError(f"{origin}: no page of the site shows README.md{anchor}")
            place = sections[anchor[1:]]
        elif not target:
            return link[0]
        else:
            place = _place(path)
        return posixpath.relpath(place, posixpath.dirname(here)) + anchor

    parts = _FENCED.split(markdown)
    parts[::2] = [
        re.sub(r"^( +)(?=- )", r"\1\1", _LINK.sub(rewritten, part), flags=re.MULTILINE) for part in parts[::2]
    ]
    return "".join(parts)


def _source_page(path: str) -> str:
    suffix = Path(path).suffix.removeprefix(".")
    language = {"py": "python", "sh": "bash", "yaml": "yaml"}.get(suffix, "text")
    text = (ROOT / path).read_text()
    return f"---\nsearch:\n  exclude: true\n---\n\n# `{path}`\n\n`````{language}\n{text}`````\n"
