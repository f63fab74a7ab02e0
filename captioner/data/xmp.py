"""XMP, the metadata that photo programs keep beside or inside a picture: its description, read and set.

In: the content of an .xmp file. Out: the same with another `dc:description` in the language x-default; every
other field, every other language, comments and identifiers stay, because only that one element is touched.
The description is found as XMP part 1 (ISO 16684-1) writes it, and in the simpler ways seen in the wild.

The only module that uses lxml (`pip install 'captioner[xmp]'`).
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from captioner.data.embedded import embedded_notes
from captioner.errors import DataError, MissingExtra

RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
DC = "{http://purl.org/dc/elements/1.1/}"
DESCRIPTION = DC + "description"
LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"
DEFAULT = "x-default"

_EXTENDED = "{http://ns.adobe.com/xmp/note/}HasExtendedXMP"
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NEW = """\
<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="captioner">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/"/>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>
""".encode()


def read_xmp(content: bytes) -> str | None:
    """The description in XMP: in x-default, else in the language named first; None: there is none.

    Raises:
        DataError: this is no XMP.
        MissingExtra: lxml is not installed.
    """
    if not content.strip():
        return None
    owner, described = _described(_rdf(_parse(content)))
    if described is None:
        return (owner.get(DESCRIPTION) or "").strip() or None
    items = _items(described)
    default = next((item for item in items if _is_default(item)), items[0] if items else described)
    return "".join(default.itertext()).strip() or None


def write_xmp(content: bytes, text: str, found: Mapping[str, Any]) -> bytes:
    """XMP whose description in x-default is `text`, all else as it was; new XMP if `content` is empty.

    Where `found` has captions in several languages, each stands under its own `xml:lang`, and the first in
    x-default, too.

    Raises:
        DataError: `content` is no XMP.
        MissingExtra: lxml is not installed.
    """
    content = content.strip() and content or _NEW
    tree = _parse(content)
    owner, described = _described(_rdf(tree))
    alternatives = _alternatives(owner, described)
    spoken = {language: one["caption"] for language, one in found.get("captions", {}).items()}
    if spoken and text == found["caption"]:
        text = next(iter(spoken.values()))
    _set_default(alternatives, _NOT_XML.sub("\ufffd", text))
    for language, said in spoken.items():
        _set_language(alternatives, language, _NOT_XML.sub("\ufffd", said))
    return _written(tree, declared=b"<?xml " in content[:20])


def embedded_xmp(picture: Path) -> bytes:
    """The XMP inside a picture, for a sidecar to begin with; b"" where there is none that can be read.

    A description that stands inside in another form alone (see `data.embedded`) is set in it, so that a
    program that prefers sidecars still shows it.

    Raises:
        MissingExtra: lxml is not installed.
    """
    try:
        packet, description = embedded_notes(picture)
    except Exception:  # whatever is wrong inside a picture, a sidecar can begin empty
        return b""
    content = b""
    if packet.strip():
        with suppress(DataError):
            tree = _parse(packet)
            for owner in _rdf(tree).iterfind(RDF + "Description"):
                owner.attrib.pop(_EXTENDED, None)  # points at a second part, which only the picture has
            content = _written(tree)
    return write_xmp(content, description, {}) if description and not read_xmp(content) else content


def _etree() -> Any:
    try:
        from lxml import etree
    except ImportError as error:
        raise MissingExtra("xmp", "XMP") from error
    return etree


def _parse(content: bytes) -> Any:
    etree = _etree()
    # No entities, no DTDs, nothing fetched, nothing huge: sidecars come from anywhere.
    parser = etree.XMLParser(resolve_entities=False, load_dtd=False, no_network=True, strip_cdata=False)
    if not content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        content = content.strip(b"\0 \t\r\n")  # packets are padded, and a declaration has to come first
    try:
        tree = etree.fromstring(content, parser).getroottree()
    except (etree.XMLSyntaxError, ValueError) as error:
        raise DataError(f"is not XMP that can be read ({error}): move it away, or mend it") from error
    if tree.docinfo.doctype:
        raise DataError("is not XMP (it declares a document type): move it away")
    return tree


def _written(tree: Any, declared: bool = False) -> bytes:
    root = tree.getroot()
    # What stands around the root (the packet's marks, comments), each on a line of its own.
    parts = [*reversed(list(root.itersiblings(preceding=True))), root, *root.itersiblings()]
    lines = [_etree().tostring(part, encoding="utf-8", with_tail=False) for part in parts]
    head = [b'<?xml version="1.0" encoding="UTF-8"?>'] if declared else []
    return b"\n".join([*head, *lines, b""])


def _rdf(tree: Any) -> Any:
    rdf = next(tree.getroot().iter(RDF + "RDF"), None)
    if rdf is None:
        raise DataError("is XML, but not XMP (it has no rdf:RDF): move it away")
    return rdf


def _described(rdf: Any) -> tuple[Any, Any]:
    """The rdf:Description that has, or is to have, the description, and its dc:description or None."""
    owners = list(rdf.iterfind(RDF + "Description"))
    for owner in owners:
        described = owner.find(DESCRIPTION)
        if described is not None:
            return owner, described
    with_attribute = [owner for owner in owners if DESCRIPTION in owner.attrib]
    if not owners:
        owners = [_etree().SubElement(rdf, RDF + "Description", {RDF + "about": ""})]
    return (with_attribute or owners)[0], None


def _items(described: Any) -> list[Any]:
    return [item for kind in ("Alt", "Bag", "Seq") for item in described.iterfind(f"{RDF}{kind}/{RDF}li")]


def _is_default(item: Any) -> bool:
    return bool(item.get(LANGUAGE, "").lower() == DEFAULT)


def _alternatives(owner: Any, described: Any) -> Any:
    """The rdf:Alt of the description, made where it is missing or is written in another way."""
    etree = _etree()
    owner.attrib.pop(DESCRIPTION, None)
    if described is None:
        described = _added(owner)
    container = next((child for child in described if child.tag in (RDF + "Bag", RDF + "Seq")), None)
    if container is not None:
        container.tag = RDF + "Alt"
    container = described.find(RDF + "Alt")
    if container is None:  # plain text, or nothing: x-default takes its place
        tail = described.tail
        described.clear()
        container = etree.SubElement(described, RDF + "Alt")
        etree.SubElement(container, RDF + "li", {LANGUAGE: DEFAULT})
        etree.indent(described, space=" ", level=3)
        described.tail = tail
    return container


def _added(owner: Any) -> Any:
    """A new dc:description at the end of `owner`, indented like what is there."""
    described = _etree().Element(DESCRIPTION, nsmap={"dc": DC[1:-1]})
    last = owner[-1] if len(owner) else None
    if last is None:
        owner.text, described.tail = "\n   ", "\n  "
    else:
        described.tail, last.tail = last.tail, owner.text
    owner.append(described)
    return described


def _set_language(alternatives: Any, language: str, text: str) -> None:
    items = list(alternatives.iterfind(RDF + "li"))
    item = next((item for item in items if item.get(LANGUAGE, "").lower() == language), None)
    if item is None:
        item = _etree().SubElement(alternatives, RDF + "li", {LANGUAGE: language})
        item.tail = items[-1].tail
        items[-1].tail = items[0].tail if len(items) > 1 else alternatives.text
    for child in list(item):
        item.remove(child)
    item.text = text


def _set_default(alternatives: Any, text: str) -> None:
    items = list(alternatives.iterfind(RDF + "li"))
    default = next((item for item in items if _is_default(item)), None)
    if default is None and items and LANGUAGE not in items[0].attrib:
        default = items[0]
    if default is None:
        default = _etree().Element(RDF + "li")
        default.tail = alternatives.text
        alternatives.insert(0, default)  # the default comes first
    for child in list(default):
        default.remove(child)
    default.set(LANGUAGE, DEFAULT)
    default.text = text
