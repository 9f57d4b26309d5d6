//! Unpacks the ELF `vmlinux` out of a distribution's `vmlinuz`, so that a test can boot the PVH entry.
//!
//! The setup header (`Documentation/arch/x86/boot.rst`) says where the compressed payload lies.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::error::Error;
use crate::process;

const SETUP_SECTS: usize = 0x1f1;
const HEADER_MAGIC: usize = 0x202;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

/// How a payload is compressed and which program undoes it.
struct Compression {
    magic: &'static [u8],
    program: &'static [&'static str],
    /// Bytes behind the stream: the build appends the unpacked length to formats that do not carry it.
    trailer: usize,
}

const COMPRESSIONS: [Compression; 3] = [
    Compression {
        magic: &[0x28, 0xb5, 0x2f, 0xfd],
        program: &["zstd", "-dc"],
        trailer: 4,
    },
    Compression {
        magic: &[0xfd, b'7', b'z', b'X', b'Z', 0],
        program: &["xz", "-dc"],
        trailer: 4,
    },
    Compression {
        magic: &[0x1f, 0x8b, 8],
        program: &["gzip", "-dc"],
        trailer: 0,
    },
];

/// Writes the ELF kernel inside the bzImage at `image` to `vmlinux`.
pub fn extract_vmlinux(image: &Path, vmlinux: &Path) -> Result<(), Error> {
    let bytes = fs::read(image).map_err(Error::file("read", image))?;
    let (payload, compression) = find_payload(&bytes).map_err(|reason| Error::NotABzImage {
        path: image.into(),
        reason,
    })?;
    let packed = vmlinux.with_extension("packed");
    fs::write(&packed, payload).map_err(Error::file("write", &packed))?;

    let input = File::open(&packed).map_err(Error::file("open", &packed))?;
    let output = File::create(vmlinux).map_err(Error::file("create", vmlinux))?;
    let mut command = Command::new(compression.program[0]);
    command
        .args(&compression.program[1..])
        .stdin(input)
        .stdout(output)
        .stderr(Stdio::null());
    process::run_visibly(&mut command)?;
    fs::remove_file(&packed).map_err(Error::file("remove", &packed))?;

    let mut start = [0; 4];
    let mut file = File::open(vmlinux).map_err(Error::file("open", vmlinux))?;
    std::io::Read::read_exact(&mut file, &mut start).map_err(Error::file("read", vmlinux))?;
    if start != *b"\x7fELF" {
        return Err(Error::NotABzImage {
            path: image.into(),
            reason: "its payload is no ELF file",
        });
    }
    Ok(())
}

fn find_payload(bytes: &[u8]) -> Result<(&[u8], &'static Compression), &'static str> {
    if bytes.get(HEADER_MAGIC..HEADER_MAGIC + 4) != Some(b"HdrS") {
        return Err("it has no setup header");
    }
    let word = |at: usize| {
        let field = bytes
            .get(at..at + 4)
            .and_then(|field| field.try_into().ok());
        field
            .map(u32::from_le_bytes)
            .map(|value| value as usize)
            .ok_or("its setup header is cut short")
    };
    let sectors = match bytes[SETUP_SECTS] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (sectors + 1) * 512 + word(PAYLOAD_OFFSET)?;
    let payload = bytes
        .get(start..start + word(PAYLOAD_LENGTH)?)
        .ok_or("its payload is cut short")?;
    let compression = COMPRESSIONS
        .iter()
        .find(|known| payload.starts_with(known.magic));
    let compression = compression.ok_or("its payload is compressed in a way unknown here")?;
    Ok((&payload[..payload.len() - compression.trailer], compression))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 5 * 512 + 16];
        bytes[HEADER_MAGIC..HEADER_MAGIC + 4].copy_from_slice(b"HdrS");
        bytes[PAYLOAD_OFFSET] = 16;
        bytes[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4]
            .copy_from_slice(&(payload.len() as u32).to_le_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    #[test]
    fn payload_is_found_without_the_appended_length() {
        let bytes = image(b"\x28\xb5\x2f\xfdstreamLLLL");
        let (payload, compression) = find_payload(&bytes).unwrap();
        assert_eq!(payload, b"\x28\xb5\x2f\xfdstream");
        assert_eq!(compression.program[0], "zstd");
    }

    #[test]
    fn damaged_images_are_refused_with_the_reason() {
        assert_eq!(find_payload(b"short").err(), Some("it has no setup header"));
        let unknown = image(b"junk junk");
        assert_eq!(
            find_payload(&unknown).err(),
            Some("its payload is compressed in a way unknown here")
        );
        let mut cut = image(b"\x28\xb5\x2f\xfdstreamLLLL");
        cut.pop();
        assert_eq!(find_payload(&cut).err(), Some("its payload is cut short"));
    }
}
