//! The directory everything is kept in.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use crate::exit::Failure;

/// A directory of the demo's own.
pub(crate) enum Home {
    /// Gone with this value.
    Temporary(TempDir),
    Kept(PathBuf),
}

impl Home {
    /// `keep`, which must be new or empty; else a temporary one.
    pub(crate) fn new(keep: Option<&Path>) -> Result<Home, Failure> {
        let Some(dir) = keep else {
            let made = tempfile::Builder::new().prefix("paceline-demo-").tempdir();
            return made.map(Home::Temporary).map_err(|e| Failure::failed(format!("no temporary directory can be made: {e}")));
        };
        let shown = dir.display();
        fs::create_dir_all(dir).map_err(|e| Failure::usage(format!("--keep: {shown} cannot be made: {e}")))?;
        match fs::read_dir(dir).map(|mut entries| entries.next().is_none()) {
            Ok(true) => Ok(Home::Kept(dir.to_owned())),
            Ok(false) => Err(Failure::usage(format!("--keep: {shown} is not empty; name a new directory"))),
            Err(e) => Err(Failure::usage(format!("--keep: {shown} cannot be read: {e}"))),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        match self {
            Home::Temporary(dir) => dir.path(),
            Home::Kept(dir) => dir,
        }
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Writes a file into it.
    pub(crate) fn write(&self, name: &str, text: &str) -> io::Result<PathBuf> {
        let path = self.file(name);
        fs::write(&path, text)?;
        Ok(path)
    }

    /// Stays where it is from now on.
    #[must_use]
    pub(crate) fn keep(self) -> Home {
        match self {
            Home::Temporary(dir) => Home::Kept(dir.keep()),
            kept => kept,
        }
    }

    pub(crate) fn is_kept(&self) -> bool {
        matches!(self, Home::Kept(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_with_something_in_it_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let new = dir.path().join("a/b");
        let home = Home::new(Some(&new)).unwrap();
        home.write("x", "y").unwrap();
        drop(home);
        assert!(new.join("x").exists());
        assert!(matches!(Home::new(Some(&new)), Err(Failure::Usage(why)) if why.contains("is not empty")));
    }

    #[test]
    fn a_temporary_one_is_removed_unless_it_is_to_stay() {
        let path = Home::new(None).unwrap().path().to_owned();
        assert!(!path.exists());
        let kept = Home::new(None).unwrap().keep();
        assert!(kept.path().exists() && kept.is_kept());
        fs::remove_dir_all(kept.path()).unwrap();
    }
}
