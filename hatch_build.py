"""Hatchling's hook: a wheel holds the woven package, an editable install points at `build/` and keeps it fresh."""
import sys
from pathlib import Path
from typing import Any, Dict

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class WovenPackage(BuildHookInterface):

    def initialize(self, version: str, build_data: Dict[str, Any]) -> None:
        """Args:
            version: 'standard' or 'editable'.
        """
        sys.path.insert(0, self.root)
        from patchset import editable
        from patchset import PatchsetError
        from patchset.project import Project
        from patchset.upstream import read_licence
        try:
            project = Project(Path(self.root))
            tree = project.build()
            licence = project.build_folder / 'upstream' / 'LICENSE'
            licence.write_bytes(read_licence(project.wheel()))
            name = f"{self.build_config.builder.artifact_project_id}.dist-info/licenses/upstream/LICENSE"
            files = {str(licence): name}
            if version == 'editable':
                files.update(editable.site_packages_files(project))
                build_data['force_include_editable'].update(files)
            else:
                files.update({str(project.build_folder / path): path for path in tree.woven})
                build_data['force_include'].update(files)
        except PatchsetError as error:
            sys.exit(f'patchset: {error}')
        finally:
            sys.path.remove(self.root)
