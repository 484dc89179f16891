"""Hostile chat templates: nothing is executed, and nothing runs for ever."""

from __future__ import annotations

import copy
import time
from pathlib import Path

import jinja2
import orjson
import pytest

from curation import records
from curation.errors import IntegrityError
from tests.training.test_examples import CHATML
from training import template
from training.examples import UnfitExample, prompt_ids
from training.model import load_tokenizer, resolve_base

GLOBALS = "cycler.__init__.__globals__"
RUN = "system('touch MARKER')"
INJECTIONS = [
    f"{{{{ {GLOBALS}.os.{RUN} }}}}",
    f"{{{{ lipsum.__globals__['os'].{RUN} }}}}",
    f"{{{{ joiner.__init__.__globals__.os.{RUN} }}}}",
    f"{{{{ namespace.__init__.__globals__.os.{RUN} }}}}",
    f"{{{{ self.__init__.__globals__.__builtins__.__import__('os').{RUN} }}}}",
    f"{{{{ self._TemplateReference__context.cycler.__init__.__globals__.os.{RUN} }}}}",
    f"{{{{ range.__globals__.__builtins__.__import__('os').{RUN} }}}}",
    f"{{{{ raise_exception.__globals__['__builtins__']['__import__']('os').{RUN} }}}}",
    f"{{{{ strftime_now.__globals__['__builtins__']['__import__']('os').{RUN} }}}}",
    f"{{{{ messages.append.__self__.__class__.__base__.__subclasses__()[0].__init__.__globals__.os.{RUN} }}}}",
    f"{{{{ ''.__class__.__mro__[1].__subclasses__() | map(attribute='__init__') | first }}}}{{{{ ().__class__.{RUN} }}}}",
    f"{{{{ (messages | attr('append') | attr('__self__') | attr('__class__')).{RUN} }}}}",
    f"{{{{ ('%s' | attr('format') | attr('__class__') | attr('__mro__'))[1].{RUN} }}}}",
    f"{{{{ '{{0.__class__.__mro__}}'.format(messages).{RUN} }}}}",
    f"{{{{ ('{{0.__globals__}}' | attr('format'))(raise_exception).{RUN} }}}}",
    f"{{{{ cycler['__init__']['__globals__']['os'].{RUN} }}}}",
    f"{{{{ cycler|attr('__in'~'it__')|attr('__glo'~'bals__')|attr('get')('os').{RUN} }}}}",
    f"{{% set x = cycler %}}{{{{ x.__init__.__globals__.os.{RUN} }}}}",
    f"{{% for m in messages %}}{{{{ m.__class__.__init__.__globals__.os.{RUN} }}}}{{% endfor %}}",
    "{{ messages.__class__.__base__.__subclasses__() | selectattr('__name__', 'equalto', 'Popen') | list }}"
    "{{ cycler.__init__.__globals__.os.popen('touch MARKER').read() }}",
]
BOMBS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "memory": "{% set x = 'x' * 20000000000 %}",
    "text": "{{ 'x' * 50000000 }}",
    "doubling": "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
}


def with_template(base: Path, tmp_path: Path, text: str) -> Path:
    """A copy of the base that brings this template."""
    for file in base.iterdir():
        if file.name != "manifest.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    config = orjson.loads((tmp_path / "tokenizer_config.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_bytes(orjson.dumps({**config, "chat_template": text}))
    return tmp_path


def test_no_template_executes_anything(tokenizer, tmp_path):
    marker, tokenizer = tmp_path / "ran", copy.deepcopy(tokenizer)
    for text in INJECTIONS:
        tokenizer.chat_template = text.replace("MARKER", str(marker))
        with pytest.raises(UnfitExample, match="the chat template refuses"):
            prompt_ids(records.user_message("q"), tokenizer)
    assert len(INJECTIONS) == 20
    assert not marker.exists()


def test_outside_the_sandbox_it_would_have_been_executed(tmp_path):
    jinja2.Environment().from_string(INJECTIONS[0].replace("MARKER", str(tmp_path / "ran"))).render()
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", BOMBS)
def test_a_template_that_would_not_end_or_fills_the_memory_is_refused(base, tmp_path, kind):
    made = with_template(base, tmp_path, BOMBS[kind])
    with pytest.raises(IntegrityError, match="chat template (takes more than|makes more)"):
        load_tokenizer(resolve_base(made))


def test_an_honest_template_is_tried_once_and_one_that_refuses_the_trial_is_kept(base, tmp_path):
    tokenizer = load_tokenizer(resolve_base(with_template(base, tmp_path, CHATML)))
    assert tokenizer.chat_template == CHATML
    begun = time.process_time()
    template.try_out(CHATML)
    assert time.process_time() - begun < 0.1
    template.try_out("{{ raise_exception('system message wanted') }}")


def test_without_limits_the_trial_would_go_on(monkeypatch):
    unlimited = template._TRIAL.replace("(spent + 1, spent + 1 + 1)", "(999, 999)")
    assert unlimited != template._TRIAL
    monkeypatch.setattr(template, "_TRIAL", unlimited)
    monkeypatch.setattr(template, "_WAIT", 6.0)
    with pytest.raises(IntegrityError, match="does not end"):
        template.try_out.__wrapped__(BOMBS["loops"])
