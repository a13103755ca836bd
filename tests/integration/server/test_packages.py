"""Package managers work inside a sandbox where the host itself reaches their registries."""

import pytest
from tests.support.fixtures import NEEDS_A_SERVER, MakeSandbox
from tests.support.inside import root, run

pytestmark = [NEEDS_A_SERVER, pytest.mark.needs("internet"), pytest.mark.timeout(300)]


def test_pip_install_works_as_user_and_the_package_is_there_for_the_next_cell(sandboxes: MakeSandbox) -> None:
    """A pure Python package, installed without root, imported by a running interpreter."""
    sandbox = sandboxes(timeout=300)
    assert sandbox.run_code("1").text == "1"
    done = run(sandbox, "pip install six", timeout=120)
    assert done.code == 0, done
    assert sandbox.run_code("import six\nsix.PY3").text == "True"


def test_apt_get_install_works_as_root(sandboxes: MakeSandbox) -> None:
    """A Debian package with a maintainer script, unpacked by dpkg with all its owners."""
    sandbox = sandboxes(timeout=300)
    done = root(sandbox, "apt-get update && apt-get install -y --no-install-recommends less", timeout=240)
    assert done.code == 0, done
    assert run(sandbox, "less --version").code == 0


def test_npm_install_works_as_user(sandboxes: MakeSandbox) -> None:
    """A package of the npm registry, required by a program afterwards."""
    sandbox = sandboxes(timeout=300)
    done = run(
        sandbox, "npm install is-number && node -e \"console.log(require('is-number')(7))\"", timeout=200
    )
    assert done.code == 0, done
    assert done.out.endswith("true\n")
