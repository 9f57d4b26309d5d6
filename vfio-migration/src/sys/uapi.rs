//! The layout of VFIO_DEVICE_FEATURE requests (`linux/vfio.h`).
//!
//! The payload structs come from vfio-bindings, which asserts their layout; its header struct ends
//! in a flexible array, so header and payload are joined here. Used by [`super::ioctl`] only.

use std::mem::{offset_of, size_of};

use vfio_bindings::bindings::vfio::{
    vfio_device_feature, vfio_device_feature_dma_logging_control,
    vfio_device_feature_dma_logging_report, vfio_device_feature_mig_data_size,
    vfio_device_feature_mig_state, vfio_device_feature_migration, vfio_precopy_info,
};

/// `struct vfio_device_feature` followed by its payload.
#[repr(C)]
pub(crate) struct Feature<T> {
    pub argsz: u32,
    pub flags: u32,
    pub payload: T,
}

impl<T> Feature<T> {
    #[allow(clippy::cast_possible_truncation, reason = "asserted to fit")]
    const ARGSZ: u32 = {
        assert!(size_of::<Self>() <= 4096);
        size_of::<Self>() as u32
    };

    pub(crate) fn new(flags: u32, payload: T) -> Self {
        Self {
            argsz: Self::ARGSZ,
            flags,
            payload,
        }
    }
}

/// The `argsz` of [`vfio_precopy_info`].
pub(crate) const PRECOPY_INFO_ARGSZ: u32 = 24;

const _: () = {
    assert!(size_of::<Feature<()>>() == size_of::<vfio_device_feature>());
    assert!(offset_of!(Feature<vfio_device_feature_migration>, payload) == 8);
    assert!(offset_of!(Feature<vfio_device_feature_mig_state>, payload) == 8);
    assert!(offset_of!(Feature<vfio_device_feature_mig_data_size>, payload) == 8);
    assert!(offset_of!(Feature<vfio_device_feature_dma_logging_control>, payload) == 8);
    assert!(offset_of!(Feature<vfio_device_feature_dma_logging_report>, payload) == 8);
    assert!(size_of::<Feature<vfio_device_feature_migration>>() == 16);
    assert!(size_of::<Feature<vfio_device_feature_mig_state>>() == 16);
    assert!(size_of::<Feature<vfio_device_feature_mig_data_size>>() == 16);
    assert!(size_of::<Feature<vfio_device_feature_dma_logging_control>>() == 32);
    assert!(size_of::<Feature<vfio_device_feature_dma_logging_report>>() == 40);
    assert!(size_of::<vfio_precopy_info>() == PRECOPY_INFO_ARGSZ as usize);
};
