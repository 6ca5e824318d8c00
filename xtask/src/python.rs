//! Installs pinned Python packages into a folder of their own, with nothing but `python3 -m pip`.
//! No virtual environment: some systems ship python3 without venv, and refuse to install outside one.
//! Invariant: a folder holds its `installed.txt`, equal to the list, only if the installation ended well.

use std::fs;
use std::path::Path;
use std::process::Command;

/// The lists in `tests/clients/`: each is `NAME.txt`, and becomes the folder `NAME` of the cache.
pub(crate) const LISTS: [&str; 3] = ["openai", "infer", "parquet"];

const MARK: &str = "installed.txt";

/// Installs `lists/NAME.txt` into `folders/NAME`, unless that very list is there already.
pub(crate) fn install(lists: &Path, name: &str, folders: &Path) -> Result<(), String> {
    let list = lists.join(format!("{name}.txt"));
    let wanted = fs::read_to_string(&list).map_err(|error| format!("{}: {error}", list.display()))?;
    let folder = folders.join(name);
    if fs::read_to_string(folder.join(MARK)).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    let unwritable = |error| format!("{}: {error}", folder.display());
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(unwritable)?;
    }
    fs::create_dir_all(&folder).map_err(unwritable)?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"]).arg(&folder);
    pip.arg("--requirement").arg(&list);
    let packages = wanted.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join(", ");
    crate::run(pip, &format!("`python3 -m pip install` of {packages} into {}", folder.display()))?;
    fs::write(folder.join(MARK), wanted).map_err(unwritable)
}
