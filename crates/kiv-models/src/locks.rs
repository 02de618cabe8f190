//! Locks, where there are any.

use std::io;

/// Whether a lock was refused because the file system has none, as some network file systems:
/// one must not need two processes.
#[must_use]
pub fn has_no_locks(error: &io::Error) -> bool {
    // NFS without a lock service.
    #[cfg(unix)]
    if error.raw_os_error() == Some(rustix::io::Errno::NOLCK.raw_os_error()) {
        return true;
    }
    error.kind() == io::ErrorKind::Unsupported
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_another_has_is_no_lack_of_locks() {
        assert!(has_no_locks(&io::ErrorKind::Unsupported.into()));
        assert!(!has_no_locks(&io::ErrorKind::WouldBlock.into()));
        #[cfg(unix)]
        for (errno, none) in [
            (rustix::io::Errno::NOLCK, true),
            (rustix::io::Errno::OPNOTSUPP, true),
            (rustix::io::Errno::ACCESS, false),
        ] {
            let error = io::Error::from_raw_os_error(errno.raw_os_error());
            assert_eq!(has_no_locks(&error), none, "{error}");
        }
    }
}
