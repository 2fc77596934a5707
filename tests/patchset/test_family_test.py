"""The test of all families that goes upstream with them, on the families as they are here."""
from importlib.util import module_from_spec, spec_from_file_location

from patchset.project import Project
from patchset.steps import FAMILY_TEST_SOURCE

spec = spec_from_file_location('family_test', Project().root / FAMILY_TEST_SOURCE)
family_test = module_from_spec(spec)
spec.loader.exec_module(family_test)
globals().update({
    name: value for name, value in vars(family_test).items()
    if name.startswith('test_') or name == 'case'})
