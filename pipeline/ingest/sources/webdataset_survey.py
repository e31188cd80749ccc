"""Decide where the labels of tar archives come from, by the names and label files of one of them.

Names are read up to the end of the archive, because a folder may contain all of them; where the first thousand have no
folder, the survey ends there. Of `.cls`, `.json` and `.txt` it reads those of the first thousand images.
"""

from collections.abc import Iterator
from typing import Final

from pipeline.config.ingest import IngestConfig
from pipeline.images.reject_reasons import Reject
from pipeline.ingest.sources.containers import UnusableFile
from pipeline.ingest.sources.label_columns import LABEL_NAMES
from pipeline.ingest.sources.labels import Candidate, label_from_value, looks_like_classes
from pipeline.ingest.sources.path_labels import PathSurvey, Survey, common_root, is_label_file
from pipeline.ingest.sources.source import SourceFile
from pipeline.ingest.sources.tar import Member, members
from pipeline.ingest.sources.webdataset import (
    SIDECARS,
    Sample,
    TarRule,
    extension_of,
    is_image_name,
    json_labels,
    line_of,
)
from pipeline.storage.store import Store

_SAMPLE: Final = 1000


def survey_tar(
    store: Store, file: SourceFile, siblings: list[SourceFile], config: IngestConfig
) -> tuple[TarRule, Survey]:
    """siblings: other archives of the source: a folder that all of them begin with is no class.

    Raises ConfigError where labels disagree, StorageError.
    """
    listing = _Listing(store, file, config)
    rule = TarRule(whole_stem=listing.collides())
    root = common_root(listing.names)
    if root and any(not _first_name(store, other, config).startswith(root) for other in siblings):
        root = ""
    survey = PathSurvey(config, _SAMPLE)
    for name in listing.names:
        if is_image_name(name) or is_label_file(name):
            survey.add(name)
    sidecars = listing.sidecars(rule, survey.images)
    where = store.location(file.key)
    kind = "WebDataset (tar)" if sidecars else "tar of images"
    found = survey.finish(where, kind, root, lambda name: listing.texts.get(name, b""), sidecars)
    return rule._replace(path=found.rule), found


class _Listing:
    """The names of an archive, and the content of its label files and first sidecars."""

    def __init__(self, store: Store, file: SourceFile, config: IngestConfig) -> None:
        self.names: list[str] = []
        self.texts: dict[str, bytes] = {}
        self._images = 0
        folders = False
        for member in self._members(store, file, config):
            self.names.append(member.name)
            self._images += is_image_name(member.name)
            folders = folders or "/" in member.name
            if isinstance(member.data, bytes) and self._is_wanted(member.name):
                self.texts[member.name] = member.data
            if self._images > _SAMPLE and not folders:
                break

    def _members(self, store: Store, file: SourceFile, config: IngestConfig) -> Iterator[Member]:
        try:
            for member in members(store, file, config.max_image_bytes, self._is_wanted):
                if not (isinstance(member.data, Reject) and member.data.reason == "unsafe-name"):
                    yield member
        except UnusableFile:
            return  # the task that reads the archive meets the damage again

    def _is_wanted(self, name: str) -> bool:
        return is_label_file(name) or (extension_of(name) in SIDECARS and self._images <= _SAMPLE)

    def collides(self) -> bool:
        """Whether one key up to the first dot would join several samples, as in scan.0000.cls and scan.0001.cls."""
        rule, before = TarRule(), set[tuple[str, str]]()
        for name in self.names:
            if extension_of(name) in SIDECARS and not is_label_file(name):
                state = (rule.key(name), extension_of(name))
                if state in before:
                    return True
                before.add(state)
        return False

    def sidecars(self, rule: TarRule, images: list[str]) -> list[Candidate]:
        """The candidates `.cls`, every label field of `.json`, and `.txt`."""
        samples: dict[str, Sample] = {}
        for name, text in self.texts.items():
            samples.setdefault(rule.key(name), Sample()).add(Member(name, text))
        rows = [(samples.get(rule.key(image), Sample()), image) for image in images]
        texts = {extension: [_text(sample, extension, image) for sample, image in rows] for extension in SIDECARS}
        found = []
        if any(texts["cls"]):
            found.append(Candidate("cls", ".cls files", tuple(line_of(text) for text in texts["cls"])))
        fields = [json_labels(text) for text in texts["json"]]
        names = dict.fromkeys(name for each in fields for name in each)
        for name in sorted(
            names, key=lambda name: LABEL_NAMES.index(name) if name in LABEL_NAMES else len(LABEL_NAMES)
        ):
            values = tuple(label_from_value(each.get(name)) for each in fields)
            found.append(Candidate("json", f".json files, field '{name}'", values, name))
        lines = [line_of(text) for text in texts["txt"]]
        if any(lines):
            doubt = None if looks_like_classes(lines) else "it differs from image to image, like captions"
            found.append(Candidate("text", ".txt files", tuple(lines), None, doubt))
        return found


def _text(sample: Sample, extension: str, image: str) -> bytes:
    try:
        return sample.text(extension, image)
    except ValueError:
        return b""


def _first_name(store: Store, file: SourceFile, config: IngestConfig) -> str:
    try:
        found = members(store, file, config.max_image_bytes, lambda name: False)
        return next((member.name for member in found if is_image_name(member.name)), "")
    except UnusableFile:
        return ""
