//! The host's pool of 2 MiB huge pages (`Documentation/admin-guide/mm/hugetlbpage.rst`), enlarged for tests that need it.

use std::fs;
use std::path::Path;

const HUGE_PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// Huge pages added to the host's pool for one test.
#[derive(Debug)]
pub struct HugePages {
    before: String,
}

impl HugePages {
    /// Makes sure that `wanted` 2 MiB pages are free.
    ///
    /// # Errors
    /// The reason why this host cannot have them.
    pub fn reserve(wanted: u64) -> Result<Self, String> {
        let pool = Path::new(HUGE_PAGES);
        let read = |name: &str| {
            fs::read_to_string(pool.join(name))
                .map_err(|error| format!("the host has no 2 MiB huge pages: {error}"))
        };
        let count = |name: &str| Ok::<u64, String>(read(name)?.trim().parse().unwrap_or(0));
        let before = read("nr_hugepages")?;
        let missing = wanted.saturating_sub(count("free_hugepages")?);
        if missing > 0 {
            let total = count("nr_hugepages")? + missing;
            fs::write(pool.join("nr_hugepages"), total.to_string())
                .map_err(|error| format!("2 MiB huge pages cannot be reserved: {error}"))?;
        }
        let pages = Self { before };
        match count("free_hugepages")? {
            free if free < wanted => Err(format!("{free} of {wanted} 2 MiB huge pages are free")),
            _ => Ok(pages),
        }
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = fs::write(Path::new(HUGE_PAGES).join("nr_hugepages"), &self.before);
    }
}
