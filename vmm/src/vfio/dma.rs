//! Address spaces of devices: what their DMA reaches, at the guest-physical addresses that the guest gives them.
//!
//! A type1 container and an iommufd address space look alike here. Memory is mapped for mediated devices too: their drivers pin
//! pages of mapped ranges when they need them.

use std::any::Any;
use std::error::Error as StdError;
use std::io;
use std::sync::Arc;

use vfio_ioctls::{VfioError, VfioOps};
use vmm_sys_util::errno;

use super::error::Error;
use crate::memory::Ram;

/// An address space for DMA.
pub(super) struct DmaDomain {
    ops: Arc<dyn VfioOps>,
}

impl DmaDomain {
    pub(super) fn new(ops: Arc<dyn VfioOps>) -> Arc<Self> {
        Arc::new(Self { ops })
    }

    /// Maps all guest RAM. Dropping the answer unmaps it.
    pub(super) fn map_ram(self: &Arc<Self>, ram: &Ram) -> Result<Vec<DmaMapping>, Error> {
        let backing: Arc<dyn Any + Send + Sync> = Arc::new(ram.clone());
        ram.regions()
            .map(|(guest, host)| {
                let len = guest.end - guest.start;
                // SAFETY: `ram` and each of its clones keep their regions mapped.
                unsafe { DmaMapping::new(self, guest.start, host, len, Arc::clone(&backing)) }
                    .map_err(|source| Error::MapRam {
                        guest: guest.start,
                        len,
                        ram: ram.size(),
                        limit: memlock_limit(),
                        source,
                    })
            })
            .collect()
    }
}

/// A range of an address space, mapped until this is dropped.
pub(super) struct DmaMapping {
    domain: Arc<DmaDomain>,
    iova: u64,
    len: usize,
    mapped: bool,
    _backing: Arc<dyn Any + Send + Sync>,
}

impl DmaMapping {
    /// Maps `len` bytes at `host` to the device address `iova`.
    ///
    /// # Safety
    /// `backing` keeps the range mapped in this process while it lives, and nobody holds a reference to its bytes.
    pub(super) unsafe fn new(
        domain: &Arc<DmaDomain>,
        iova: u64,
        host: u64,
        len: u64,
        backing: Arc<dyn Any + Send + Sync>,
    ) -> io::Result<Self> {
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
        let host = std::ptr::with_exposed_provenance_mut(host as usize);
        // SAFETY: the caller's promise, and `backing` is dropped after the range is unmapped.
        unsafe { domain.ops.vfio_dma_map(iova, len, host) }.map_err(io_error)?;
        Ok(Self {
            domain: Arc::clone(domain),
            iova,
            len,
            mapped: true,
            _backing: backing,
        })
    }

    /// Drops a mapping that the kernel has taken away already.
    pub(super) fn forget_mapping(mut self) {
        self.mapped = false;
    }
}

impl Drop for DmaMapping {
    fn drop(&mut self) {
        if !self.mapped {
            return;
        }
        // The kernel pins what a device may reach, so a mapping that stays does not reach freed memory of this process.
        if let Err(error) = self.domain.ops.vfio_dma_unmap(self.iova, self.len) {
            tracing::warn!(
                "cannot unmap {:#x} ({} bytes) from the devices' DMA: {error}",
                self.iova,
                self.len
            );
        }
    }
}

/// How many bytes this process may lock; none where that is not limited.
pub(super) fn memlock_limit() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Memlock).current
}

/// The errno in an error of vfio-ioctls, which sits somewhere in its chain.
pub(super) fn io_error(error: VfioError) -> io::Error {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(&error);
    while let Some(current) = cause {
        if let Some(errno) = current.downcast_ref::<errno::Error>() {
            return io::Error::from_raw_os_error(errno.errno());
        }
        if let Some(number) = current
            .downcast_ref::<io::Error>()
            .and_then(io::Error::raw_os_error)
        {
            return io::Error::from_raw_os_error(number);
        }
        cause = current.source();
    }
    io::Error::other(error)
}

#[cfg(test)]
mod tests {
    use std::any::Any;
    use std::io;
    use std::sync::{Arc, Mutex};

    use dormouse_api::config::MemoryConfig;
    use vfio_ioctls::{VfioError, VfioOps};
    use vmm_sys_util::errno;

    use super::{DmaDomain, io_error};
    use crate::memory::Ram;
    use crate::vfio::Error;

    /// Ranges that are mapped, and how many more may be.
    struct FakeOps(Mutex<(Vec<(u64, usize)>, usize)>);

    impl VfioOps for FakeOps {
        unsafe fn vfio_dma_map(
            &self,
            iova: u64,
            size: usize,
            host: *mut u8,
        ) -> vfio_ioctls::Result<()> {
            let mut state = self.0.lock().unwrap();
            assert!(!host.is_null());
            if state.1 == 0 {
                return Err(VfioError::IommuDmaMap(errno::Error::new(libc::ENOMEM)));
            }
            state.1 -= 1;
            state.0.push((iova, size));
            Ok(())
        }

        fn vfio_dma_unmap(&self, iova: u64, size: usize) -> vfio_ioctls::Result<()> {
            self.0
                .lock()
                .unwrap()
                .0
                .retain(|&range| range != (iova, size));
            Ok(())
        }

        fn as_any(&self) -> &dyn Any {
            self
        }
    }

    fn ram() -> Ram {
        let mut config = MemoryConfig::default();
        config.size = 4 << 30;
        Ram::new(&config).unwrap()
    }

    #[test]
    fn both_regions_of_ram_are_mapped_until_the_mapping_is_dropped() {
        let ops = Arc::new(FakeOps(Mutex::new((Vec::new(), 2))));
        let mappings = DmaDomain::new(Arc::clone(&ops) as _)
            .map_ram(&ram())
            .unwrap();
        assert_eq!(ops.0.lock().unwrap().0, [(0, 3 << 30), (4 << 30, 1 << 30)]);
        drop(mappings);
        assert!(ops.0.lock().unwrap().0.is_empty());
    }

    #[test]
    fn a_refused_region_unmaps_the_others_and_names_the_limit() {
        let ops = Arc::new(FakeOps(Mutex::new((Vec::new(), 1))));
        let Err(error) = DmaDomain::new(Arc::clone(&ops) as _).map_ram(&ram()) else {
            panic!("mapped")
        };
        assert!(ops.0.lock().unwrap().0.is_empty());
        let Error::MapRam {
            guest,
            len,
            ram,
            source,
            ..
        } = error
        else {
            panic!("{error}")
        };
        assert_eq!((guest, len, ram), (4 << 30, 1 << 30, 4 << 30));
        let small = Error::MapRam {
            guest,
            len,
            ram,
            limit: Some(8 << 20),
            source,
        };
        assert!(
            small.to_string().contains("may lock 8388608 bytes"),
            "{small}"
        );
    }

    #[test]
    fn errno_is_found_anywhere_in_the_chain() {
        let busy = VfioError::OpenGroup(io::Error::from_raw_os_error(libc::EBUSY), "7".to_owned());
        assert_eq!(io_error(busy).raw_os_error(), Some(libc::EBUSY));
        let iommufd = iommufd_ioctls::IommufdError::IommuIoasMap(errno::Error::new(libc::ENOSPC));
        assert_eq!(
            io_error(VfioError::IommufdIoctlError(iommufd)).raw_os_error(),
            Some(libc::ENOSPC)
        );
        assert_eq!(io_error(VfioError::GroupViable).raw_os_error(), None);
    }
}
