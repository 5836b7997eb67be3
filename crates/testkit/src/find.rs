//! Where the services' programs are: Debian keeps several of them off `PATH`.

use std::path::{Path, PathBuf};

use crate::Error;

/// The program's path, looked for in `first`, then along `PATH`, then in `/usr/sbin`.
///
/// # Errors
/// [`Error::Missing`], naming the Debian `package` that holds it.
pub fn program(name: &str, package: &str, first: &[PathBuf]) -> Result<PathBuf, Error> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    first
        .iter()
        .cloned()
        .chain(std::env::split_paths(&path))
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/usr/bin")])
        .map(|dir| dir.join(name))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| Error::Missing { program: name.to_owned(), package: package.to_owned() })
}

/// The directories `/usr/lib/postgresql/*/bin`, newest version first.
pub fn postgres_bins() -> Vec<PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .collect();
    versions.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    versions.into_iter().map(|(_, bin)| bin).collect()
}

/// The directory Cargo builds into, found from the running test's own path (`target/debug/deps/name-hash`).
pub fn target_profile_dir() -> Option<PathBuf> {
    let test = std::env::current_exe().ok()?;
    let dir = test.parent()?;
    Some(if dir.file_name()? == "deps" { dir.parent()?.to_owned() } else { dir.to_owned() })
}

/// A directory under Cargo's target directory that outlives the test, for what is slow to make and safe to share.
pub(crate) fn cache_dir() -> Result<PathBuf, Error> {
    let dir = target_profile_dir()
        .and_then(|profile| profile.parent().map(Path::to_owned))
        .unwrap_or_else(std::env::temp_dir)
        .join("testkit");
    std::fs::create_dir_all(&dir).map_err(Error::io("cannot create", &dir))?;
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_names_its_package() {
        let error = program("no-such-daemon", "no-such-package", &[]).unwrap_err().to_string();
        assert!(error.contains("no-such-package") && error.contains("ops/test"), "{error}");
    }

    #[test]
    fn programs_off_the_path_are_found() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("daemon"), "").unwrap();
        let found = program("daemon", "package", &[dir.path().to_owned()]).unwrap();
        assert_eq!(found, dir.path().join("daemon"));
    }
}
