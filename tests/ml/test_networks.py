"""The network in which processes of several machines meet."""

import os
import sys

import pytest

from ml import networks


@pytest.fixture(autouse=True)
def _unnamed(monkeypatch):
    monkeypatch.setenv(networks.INTERFACE, "x")  # so that what a test sets is taken back
    monkeypatch.delenv(networks.INTERFACE)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the interface has another name")
def test_it_is_the_one_that_leads_to_the_other_machine():
    assert networks.seen_from("127.0.0.1") == "127.0.0.1"
    networks.meet("127.0.0.1")
    assert os.environ[networks.INTERFACE] == "lo"


def test_one_that_the_user_named_stays(monkeypatch):
    monkeypatch.setenv(networks.INTERFACE, "ib0")
    networks.meet("127.0.0.1")
    assert os.environ[networks.INTERFACE] == "ib0"


def test_a_machine_that_is_nowhere():
    with pytest.raises(OSError):
        networks.seen_from("nowhere.invalid")
