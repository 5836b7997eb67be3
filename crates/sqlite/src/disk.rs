//! How much room there is.

use std::path::Path;

use nix::sys::statvfs::statvfs;

/// Of a file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// What this user may still take.
    pub free: u64,
    pub total: u64,
}

/// The room where `path` is; `None` where that cannot be found out.
pub fn space(path: &Path) -> Option<Space> {
    let found = statvfs(path).ok()?;
    let block = found.fragment_size();
    Some(Space { free: found.blocks_available().saturating_mul(block), total: found.blocks().saturating_mul(block) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_room() {
        let here = space(&std::env::temp_dir()).unwrap();
        assert!(here.free <= here.total && here.total > 1_000_000, "{here:?}");
        assert_eq!(space(Path::new("/no/such/place")), None);
    }
}
