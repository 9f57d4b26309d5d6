//! Guest RAM, as `memory` in the config asks for it.
//!
//! Shared and huge-page RAM is a memfd. RAM that nobody else maps is private anonymous memory: the kernel gives a memfd transparent
//! huge pages only where the host's `shmem_enabled` allows it, which distributions leave off, but gives anonymous memory huge
//! pages wherever they are asked for (`Documentation/admin-guide/mm/transhuge.rst`).

use std::fs::File;
use std::io;
use std::ops::Range;

use dormouse_api::config::MemoryConfig;
use dormouse_arch::x86_64::layout;
use rustix::fs::MemfdFlags;
use thiserror::Error;
use vm_memory::{
    Address, FileOffset, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MmapRegion,
};

use super::parallel::each_unit;

/// How many times the host's RAM and swap a VM may be given: more is a typing error, not overcommitment.
const MAX_OVERCOMMIT: u64 = 8;
/// What one thread makes present at a time: whole huge pages, so that no two threads fault the same one.
const POPULATE_BYTES: usize = 64 << 20;
/// `MFD_HUGE_SHIFT` of `linux/memfd.h`: where the logarithm of the huge page size stands in the flags.
const MFD_HUGE_SHIFT: u32 = 26;

/// RAM that could not be provided.
#[derive(Debug, Error)]
pub enum Error {
    /// The size is beyond anything this host can serve.
    #[error(
        "memory.size is {size} bytes, more than {MAX_OVERCOMMIT} times the RAM and swap of this host ({host} bytes); choose less"
    )]
    BeyondHost {
        /// Bytes asked for.
        size: u64,
        /// Bytes of RAM and swap.
        host: u64,
    },
    /// No memfd.
    #[error("cannot create the memory file for {size} bytes of guest RAM{}", hugepage_hint(.hugepages))]
    CreateFile {
        /// Bytes asked for.
        size: u64,
        /// The huge pages asked for.
        hugepages: Option<HugePages>,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// No mapping.
    #[error("cannot map {size} bytes of guest RAM{}", hugepage_hint(.hugepages))]
    Map {
        /// Bytes asked for.
        size: u64,
        /// The huge pages asked for.
        hugepages: Option<HugePages>,
        /// The kernel's answer.
        #[source]
        source: vm_memory::mmap::MmapRegionError,
    },
    /// Pages could not be made present.
    #[error(
        "cannot prefault {size} bytes of guest RAM; free memory on the host or set memory.prefault to false"
    )]
    Prefault {
        /// Bytes asked for.
        size: u64,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The regions do not form a valid guest memory.
    #[error("cannot lay out {size} bytes of guest RAM")]
    Layout {
        /// Bytes asked for.
        size: u64,
        /// What is wrong with the regions.
        #[source]
        source: vm_memory::GuestRegionCollectionError,
    },
}

fn hugepage_hint(pages: &Option<HugePages>) -> String {
    match pages {
        Some(HugePages::Of(bytes)) => format!(
            " in huge pages; reserve them first (/sys/kernel/mm/hugepages/hugepages-{}kB/nr_hugepages)",
            bytes >> 10
        ),
        Some(HugePages::HostDefault) => {
            " in huge pages; reserve them first (/proc/sys/vm/nr_hugepages)".to_owned()
        }
        None => String::new(),
    }
}

/// Which pages of the host's huge page pools back RAM.
#[derive(Debug, Clone, Copy)]
pub enum HugePages {
    /// Pages of the host's default size.
    HostDefault,
    /// Pages of this many bytes.
    Of(u64),
}

/// The RAM of one VM.
#[derive(Debug, Clone)]
pub struct Ram {
    memory: GuestMemoryMmap,
    size: u64,
}

impl Ram {
    /// Maps fresh, zero RAM.
    ///
    /// # Errors
    /// When the host has not enough memory, address space or huge pages for it.
    pub fn new(config: &MemoryConfig) -> Result<Self, Error> {
        check_size(config)?;
        let file = memory_file(config)?;
        let mut offset = 0;
        let ram = Self::map(config, |len| {
            let start = offset;
            offset += len;
            file.as_ref().map(|file| Backing::Shared(file, start))
        })?;
        if config.prefault {
            ram.populate()?;
        }
        Ok(ram)
    }

    /// Maps RAM whose content is in `file`, each region at its offset; what the guest writes stays out of the file.
    ///
    /// For plain private memory only: the file is what backs it.
    ///
    /// # Errors
    /// When the host has not enough memory or address space for it, or the file is too short.
    pub(super) fn of_image(
        config: &MemoryConfig,
        file: &File,
        offsets: &[u64],
    ) -> Result<Self, Error> {
        check_size(config)?;
        let mut offsets = offsets.iter();
        Self::map(config, |_| {
            offsets.next().map(|&offset| Backing::Image(file, offset))
        })
    }

    /// Maps the regions; `backing` says what is behind the next one, given its length. Nothing means anonymous memory.
    fn map<'a>(
        config: &MemoryConfig,
        mut backing: impl FnMut(u64) -> Option<Backing<'a>>,
    ) -> Result<Self, Error> {
        let size = config.size;
        let mut regions = Vec::new();
        for (base, len) in layout::ram_regions(size) {
            let mapping = map_region(config, backing(len), len).map_err(|source| Error::Map {
                size,
                hugepages: huge_pages(config),
                source,
            })?;
            advise(config, &mapping);
            regions
                .push(GuestRegionMmap::new(mapping, base).expect("ram_regions never wraps around"));
        }
        let memory = GuestMemoryMmap::from_regions(regions)
            .map_err(|source| Error::Layout { size, source })?;
        Ok(Self { memory, size })
    }

    /// Guest memory, for loaders and devices.
    #[must_use]
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Bytes of RAM.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Each region's guest-physical range and the host address of its first byte.
    pub fn regions(&self) -> impl Iterator<Item = (Range<u64>, u64)> + '_ {
        self.memory.iter().map(|region| {
            let start = region.start_addr().raw_value();
            (start..start + region.len(), region.as_ptr() as u64)
        })
    }

    /// Whether a guest-physical range touches RAM.
    #[must_use]
    pub fn overlaps(&self, range: &Range<u64>) -> bool {
        self.memory.iter().any(|region| {
            let start = region.start_addr().raw_value();
            range.start < start + region.len() && start < range.end
        })
    }

    /// Makes every page present, with one thread per processor.
    fn populate(&self) -> Result<(), Error> {
        for region in self.memory.iter() {
            let (base, len) = (region.as_ptr() as usize, region.len() as usize);
            let populate = |(): &mut (), unit: u64| {
                let start = unit as usize * POPULATE_BYTES;
                populate_range(base + start, POPULATE_BYTES.min(len - start))
            };
            each_unit(len.div_ceil(POPULATE_BYTES) as u64, || (), populate).map_err(|source| {
                Error::Prefault {
                    size: self.size,
                    source,
                }
            })?;
        }
        Ok(())
    }
}

fn populate_range(address: usize, len: usize) -> io::Result<()> {
    loop {
        // SAFETY: the range lies inside one mapped RAM region that outlives the scoped thread; populating changes no byte.
        let answer =
            unsafe { libc::madvise(address as *mut libc::c_void, len, libc::MADV_POPULATE_WRITE) };
        if answer == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINTR) {
            return Err(error);
        }
    }
}

fn huge_pages(config: &MemoryConfig) -> Option<HugePages> {
    config.hugepages.then(|| {
        config
            .hugepage_size
            .map_or(HugePages::HostDefault, HugePages::Of)
    })
}

fn check_size(config: &MemoryConfig) -> Result<(), Error> {
    let (size, host) = (config.size, host_memory_bytes());
    if host != 0 && size / MAX_OVERCOMMIT > host {
        return Err(Error::BeyondHost { size, host });
    }
    Ok(())
}

/// The memfd behind shared or huge-page RAM, as long as the RAM.
fn memory_file(config: &MemoryConfig) -> Result<Option<File>, Error> {
    let hugepages = huge_pages(config);
    if !config.shared && hugepages.is_none() {
        return Ok(None);
    }
    let mut flags = MemfdFlags::CLOEXEC;
    match hugepages {
        None => {}
        Some(HugePages::HostDefault) => flags |= MemfdFlags::HUGETLB,
        Some(HugePages::Of(bytes)) => {
            let size = MemfdFlags::from_bits_retain(bytes.trailing_zeros() << MFD_HUGE_SHIFT);
            flags |= MemfdFlags::HUGETLB | size;
        }
    }
    let create = || -> io::Result<File> {
        let file = File::from(rustix::fs::memfd_create("dormouse-ram", flags)?);
        file.set_len(config.size)?;
        Ok(file)
    };
    create().map(Some).map_err(|source| Error::CreateFile {
        size: config.size,
        hugepages,
        source,
    })
}

/// The file behind a region, and where the region starts in it.
enum Backing<'a> {
    /// Mapped shared.
    Shared(&'a File, u64),
    /// Mapped privately.
    Image(&'a File, u64),
}

fn map_region(
    config: &MemoryConfig,
    backing: Option<Backing<'_>>,
    len: u64,
) -> Result<MmapRegion, vm_memory::mmap::MmapRegionError> {
    let (mut flags, file) = match backing {
        Some(Backing::Shared(file, offset)) => (libc::MAP_SHARED, Some((file, offset))),
        Some(Backing::Image(file, offset)) => (libc::MAP_PRIVATE, Some((file, offset))),
        None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, None),
    };
    // Huge pages are reserved when mapped, so that a lack of them is an error now and not a SIGBUS later.
    if !config.reserve && !config.hugepages {
        flags |= libc::MAP_NORESERVE;
    }
    let file_offset = match file {
        Some((file, offset)) => Some(FileOffset::new(
            file.try_clone()
                .map_err(vm_memory::mmap::MmapRegionError::Mmap)?,
            offset,
        )),
        None => None,
    };
    let len = usize::try_from(len)
        .map_err(|_| vm_memory::mmap::MmapRegionError::Mmap(io::ErrorKind::OutOfMemory.into()))?;
    let mut region =
        MmapRegion::build(file_offset, len, libc::PROT_READ | libc::PROT_WRITE, flags)?;
    region.set_hugetlbfs(config.hugepages);
    Ok(region)
}

/// Passes on the wishes that the kernel is free to ignore.
fn advise(config: &MemoryConfig, mapping: &MmapRegion) {
    let mut wishes = vec![(libc::MADV_DONTDUMP, "keep guest RAM out of core dumps")];
    if config.thp && !config.hugepages {
        wishes.push((libc::MADV_HUGEPAGE, "use transparent huge pages"));
    }
    for (advice, what) in wishes {
        // SAFETY: the range is exactly the mapping; none of these changes a byte of it.
        let answer = unsafe { libc::madvise(mapping.as_ptr().cast(), mapping.size(), advice) };
        if answer != 0 {
            tracing::debug!("the kernel does not {what}: {}", io::Error::last_os_error());
        }
    }
}

/// Bytes of RAM and swap of this host, 0 when unknown.
/// Bytes that this host could give to a process now, `with_swap` or without; none where the kernel does not tell.
#[must_use]
pub fn available_bytes(with_swap: bool) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let bytes = |key: &str| -> Option<u64> {
        let value = text.lines().find_map(|line| line.strip_prefix(key))?;
        let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
        kib.checked_mul(1024)
    };
    let swap = if with_swap { bytes("SwapFree:") } else { None };
    Some(bytes("MemAvailable:")?.saturating_add(swap.unwrap_or(0)))
}

fn host_memory_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    (info.totalram as u64)
        .saturating_add(info.totalswap as u64)
        .saturating_mul(u64::from(info.mem_unit))
}

#[cfg(test)]
mod tests {
    use super::{Error, Ram};
    use dormouse_api::config::MemoryConfig;
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn ram_beyond_3_gib_continues_at_4_gib() {
        let ram = Ram::new(&MemoryConfig::of_size(6 << 30)).unwrap();
        let ranges: Vec<_> = ram.regions().map(|(range, _)| range).collect();
        assert_eq!(ranges, [0..3 << 30, 4 << 30..7 << 30]);
        ram.memory()
            .write_obj(0x55u8, GuestAddress((7 << 30) - 1))
            .unwrap();
        assert!(
            ram.memory()
                .write_obj(0x55u8, GuestAddress(3 << 30))
                .is_err()
        );
        assert!(ram.overlaps(&((3 << 30) - 1..(3 << 30) + 1)));
        assert!(!ram.overlaps(&(3 << 30..4 << 30)));
    }

    #[test]
    fn shared_and_prefaulted_ram_is_writable_in_every_region() {
        let mut config = MemoryConfig::of_size(8 << 20);
        config.shared = true;
        config.prefault = true;
        let ram = Ram::new(&config).unwrap();
        ram.memory()
            .write_obj(7u64, GuestAddress((8 << 20) - 8))
            .unwrap();
        assert_eq!(
            ram.memory()
                .read_obj::<u64>(GuestAddress((8 << 20) - 8))
                .unwrap(),
            7
        );
    }

    #[test]
    fn absurd_size_is_refused_with_the_host_size() {
        let error = Ram::new(&MemoryConfig::of_size(1 << 60)).unwrap_err();
        assert!(matches!(error, Error::BeyondHost { .. }), "{error}");
    }
}
