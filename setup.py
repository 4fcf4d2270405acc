"""What setup.cfg cannot say: the configurations of the command line lie beside the package and belong inside the wheel."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["sb3_dmpo", "sb3_dmpo.*"]), "sb3_dmpo.zoo_configs"],
    package_dir={"sb3_dmpo.zoo_configs": "zoo_configs"},
    package_data={"sb3_dmpo": ["py.typed", "version.txt"], "sb3_dmpo.zoo_configs": ["*.yml"]},
)
