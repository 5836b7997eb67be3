//! Files that commands write: whole, or not there.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use crate::exit::Failure;

/// A file that takes its name when it is whole, and is gone otherwise. Its owner alone may read it.
pub(super) struct Partial {
    pub(super) file: File,
    path: PathBuf,
    wanted: PathBuf,
}

impl Partial {
    pub(super) fn create(wanted: &Path) -> Result<Partial, Failure> {
        let failed = |e: io::Error| Failure::failed(format!("{} cannot be written: {e}", wanted.display()));
        let name = wanted.file_name().ok_or_else(|| Failure::usage("--to: give the name of a file"))?;
        let path = wanted.with_file_name(format!(".{}.{:08x}.part", name.to_string_lossy(), rand::random::<u32>()));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
        Ok(Partial { file, path, wanted: wanted.to_owned() })
    }

    pub(super) fn complete(self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.path, &self.wanted)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Where it has taken its name there is none left to remove.
        let _ = fs::remove_file(&self.path);
    }
}
