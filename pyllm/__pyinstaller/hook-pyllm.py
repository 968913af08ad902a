# The library is opened by its path, and models and most modules are imported by names that are only known at run time.
from PyInstaller.utils.hooks import collect_data_files, collect_dynamic_libs, collect_submodules

binaries = collect_dynamic_libs("pyllm")
datas = collect_data_files("pyllm", includes=["**/*.html"])
hiddenimports = collect_submodules("pyllm", filter=lambda name: not name.startswith("pyllm.__pyinstaller"))
