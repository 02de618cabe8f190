//! How much memory this process may still take.

use std::fs;
use std::path::{Path, PathBuf};

/// Bytes that can be allocated without swapping: what the system has
/// available, or what this process' control groups leave of their limits if
/// that is less. `None` where the system does not say (not Linux).
#[must_use]
pub fn available_memory() -> Option<u64> {
    available_memory_in(Path::new("/"))
}

/// [`available_memory`] with `/proc` and `/sys` under another root.
#[must_use]
pub fn available_memory_in(root: &Path) -> Option<u64> {
    let info = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let system = field(&info, "MemAvailable:")?.checked_mul(1024)?;
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let left = groups
        .lines()
        .filter_map(|line| group_left(root, line))
        .min();
    Some(left.map_or(system, |left| left.min(system)))
}

/// What the limits of one line of `/proc/self/cgroup` leave.
fn group_left(root: &Path, line: &str) -> Option<u64> {
    // "0::/path" (version 2) or "4:cpu,memory:/path" (version 1)
    let mut parts = line.splitn(3, ':');
    let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    let (mount, limit, usage) = if controllers.is_empty() {
        ("sys/fs/cgroup", "memory.max", "memory.current")
    } else if controllers.split(',').any(|c| c == "memory") {
        (
            "sys/fs/cgroup/memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
        )
    } else {
        return None;
    };
    let mount = root.join(mount);
    // A limit on any group above holds too. In a container the path may be the
    // host's and not be mounted: then only the mount itself is there to read.
    let relative: PathBuf = Path::new(path.trim_start_matches('/')).into();
    let left = relative.ancestors().filter_map(|group| {
        let dir = mount.join(group);
        let read = |name: &str| fs::read_to_string(dir.join(name)).ok();
        let limit = read(limit)?.trim().parse::<u64>().ok()?;
        let usage = read(usage)?.trim().parse::<u64>().ok()?;
        // Cached files count as used, but give way.
        let stat = read("memory.stat").unwrap_or_default();
        let cached = field(&stat, "total_inactive_file").or_else(|| field(&stat, "inactive_file"));
        Some(limit.saturating_sub(usage.saturating_sub(cached.unwrap_or(0))))
    });
    left.min()
}

/// The number after `name` at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == name).then(|| words.next()?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    const INFO: (&str, &str) = (
        "proc/meminfo",
        "MemTotal:  2000 kB\nMemAvailable:    1000 kB\n",
    );

    #[test]
    fn without_groups_the_system_decides() {
        assert_eq!(available_memory_in(root(&[INFO]).path()), Some(1_024_000));
        assert_eq!(available_memory_in(root(&[]).path()), None);
    }

    #[test]
    fn version_2_limits_of_any_level_hold() {
        let root = root(&[
            INFO,
            ("proc/self/cgroup", "0::/a/b\n"),
            ("sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("sys/fs/cgroup/a/b/memory.current", "10\n"),
            ("sys/fs/cgroup/a/memory.max", "500000\n"),
            ("sys/fs/cgroup/a/memory.current", "300000\n"),
            (
                "sys/fs/cgroup/a/memory.stat",
                "anon 5\ninactive_file 100000\n",
            ),
        ]);
        assert_eq!(available_memory_in(root.path()), Some(300_000));
    }

    #[test]
    fn version_1_in_a_container_sees_its_mount() {
        let root = root(&[
            INFO,
            ("proc/self/cgroup", "12:cpu:/x\n4:memory:/docker/abc\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "4096\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "96\n"),
        ]);
        assert_eq!(available_memory_in(root.path()), Some(4000));
    }

    #[test]
    fn an_unlimited_group_limits_nothing() {
        let root = root(&[
            INFO,
            ("proc/self/cgroup", "4:memory:/\n"),
            (
                "sys/fs/cgroup/memory/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "96\n"),
        ]);
        assert_eq!(available_memory_in(root.path()), Some(1_024_000));
    }
}
