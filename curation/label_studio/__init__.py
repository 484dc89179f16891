"""People's answers: records go out as tasks and come back as labels, by a Label Studio server or by files.

What a task or an annotation means is decided by pure functions; only ``client`` speaks to a server, only
``files`` opens files. A blind task shows no suggestion; text is always shown as text.
"""

from __future__ import annotations

from curation.label_studio.answers import PersonLabel, from_annotations, tombstones
from curation.label_studio.channel import Channel, Pulled
from curation.label_studio.client import LabelStudio, connect
from curation.label_studio.files import (
    FORM_KINDS,
    FileChannel,
    read_answers,
    read_tasks,
    write_form,
    write_tasks,
)
from curation.label_studio.interface import (
    GRADES,
    KINDS,
    PREFERENCES,
    REASONS,
    SPAN_TYPES,
    VERDICTS,
    Question,
    label_config,
)
from curation.label_studio.project import ProjectChannel, channel, ensure_project
from curation.label_studio.tasks import Showing, Suggestion, to_task, validate_task

__all__ = [
    "FORM_KINDS",
    "GRADES",
    "KINDS",
    "PREFERENCES",
    "REASONS",
    "SPAN_TYPES",
    "VERDICTS",
    "Channel",
    "FileChannel",
    "LabelStudio",
    "PersonLabel",
    "ProjectChannel",
    "Pulled",
    "Question",
    "Showing",
    "Suggestion",
    "channel",
    "connect",
    "ensure_project",
    "from_annotations",
    "label_config",
    "read_answers",
    "read_tasks",
    "to_task",
    "tombstones",
    "validate_task",
    "write_form",
    "write_tasks",
]
