//! Builds the bare-metal test guest of `resources/guest` with the machine's C compiler and binutils.
//!
//! Three images hold the same code, one for each way to boot: an ELF with the PVH note, an ELF without it (64-bit
//! Linux protocol) and a bzImage. They are cached in the target directory under a name made of the sources and
//! flags, and appear there by one rename, so that test processes may build at the same time.

use std::collections::hash_map::DefaultHasher;
use std::ffi::OsStr;
use std::fs;
use std::hash::{Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Paths of the built images.
#[derive(Clone, Debug)]
pub struct GuestImages {
    /// ELF with the PVH note (`XEN_ELFNOTE_PHYS32_ENTRY`); its ELF entry point is the 64-bit one.
    pub pvh: PathBuf,
    /// ELF without notes: only the 64-bit Linux protocol can start it.
    pub linux64: PathBuf,
    /// bzImage with a setup header of protocol 2.15 and a 64-bit entry.
    pub bzimage: PathBuf,
}

/// Why the guest could not be built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The sources are not where the checkout has them.
    #[error("cannot read the guest's sources in {dir}")]
    ReadSources {
        /// The directory looked into.
        dir: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The target directory cannot be written.
    #[error("cannot write the guest's images to {dir}")]
    WriteImages {
        /// The directory written to.
        dir: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A tool could not be started.
    #[error("cannot run {tool} to build the guest: install a C compiler and binutils")]
    StartTool {
        /// Its name.
        tool: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A tool refused its input.
    #[error("{tool} failed to build the guest:\n{output}")]
    ToolFailed {
        /// Its name.
        tool: String,
        /// What it printed.
        output: String,
    },
}

const COMPILE_FLAGS: &[&str] = &[
    "-m64",
    "-std=gnu11",
    "-O2",
    "-Wall",
    "-Wextra",
    "-ffreestanding",
    "-fno-builtin",
    "-fno-tree-loop-distribute-patterns",
    "-fno-pic",
    "-fno-pie",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-fcf-protection=none",
    "-mno-red-zone",
    "-mgeneral-regs-only",
    "-mcmodel=small",
];
const LINK_FLAGS: &[&str] = &[
    "-nostdlib",
    "-static",
    "-z",
    "noexecstack",
    "-z",
    "max-page-size=4096",
];
/// Sources that are not part of every image.
const ENTRY: &str = "entry.S";
const SETUP_HEADER: &str = "bzimage.S";

/// Builds the images, or finds them built from the same sources.
///
/// # Errors
/// When sources are missing, the target directory is not writable, or the C compiler or linker fails.
pub fn build() -> Result<GuestImages, Error> {
    let source_dir = checkout().join("resources/guest");
    let sources = list_sources(&source_dir)?;
    let dir = target_dir().join(format!("guest-{:016x}", digest(&source_dir, &sources)?));
    if !dir.exists() {
        compile_into(&dir, &source_dir, &sources)?;
    }
    Ok(GuestImages {
        pvh: dir.join("pvh.elf"),
        linux64: dir.join("linux64.elf"),
        bzimage: dir.join("bzImage"),
    })
}

/// Root of the workspace.
pub fn checkout() -> PathBuf {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_dir.parent().unwrap_or(crate_dir).to_owned()
}

/// Cargo's target directory.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| checkout().join("target"), PathBuf::from)
}

fn list_sources(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let read = || -> io::Result<Vec<PathBuf>> {
        let mut files = fs::read_dir(dir)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<io::Result<Vec<_>>>()?;
        files.sort();
        Ok(files)
    };
    read().map_err(|source| Error::ReadSources {
        dir: dir.to_owned(),
        source,
    })
}

fn digest(dir: &Path, sources: &[PathBuf]) -> Result<u64, Error> {
    let mut hasher = DefaultHasher::new();
    (COMPILE_FLAGS, LINK_FLAGS, compiler()).hash(&mut hasher);
    for path in sources {
        let text = fs::read(path).map_err(|source| Error::ReadSources {
            dir: dir.to_owned(),
            source,
        })?;
        (path.file_name(), text).hash(&mut hasher);
    }
    Ok(hasher.finish())
}

fn compiler() -> String {
    std::env::var("CC").unwrap_or_else(|_| "cc".to_owned())
}

fn run<S: AsRef<OsStr>>(tool: &str, args: &[S]) -> Result<String, Error> {
    let output = Command::new(tool)
        .args(args)
        .output()
        .map_err(|source| Error::StartTool {
            tool: tool.to_owned(),
            source,
        })?;
    if !output.status.success() {
        return Err(Error::ToolFailed {
            tool: tool.to_owned(),
            output: String::from_utf8_lossy(&output.stderr).into_owned(),
        });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn compile(source: &Path, object: &Path, defines: &[String]) -> Result<(), Error> {
    let mut args: Vec<&OsStr> = COMPILE_FLAGS.iter().map(OsStr::new).collect();
    args.extend(defines.iter().map(OsStr::new));
    args.extend([
        OsStr::new("-c"),
        source.as_os_str(),
        OsStr::new("-o"),
        object.as_os_str(),
    ]);
    run(&compiler(), &args).map(drop)
}

fn link(script: &Path, objects: &[PathBuf], image: &Path) -> Result<(), Error> {
    let mut args: Vec<&OsStr> = LINK_FLAGS.iter().map(OsStr::new).collect();
    args.extend([
        OsStr::new("-T"),
        script.as_os_str(),
        OsStr::new("-o"),
        image.as_os_str(),
    ]);
    args.extend(objects.iter().map(|object| object.as_os_str()));
    run("ld", &args).map(drop)
}

fn compile_into(dir: &Path, source_dir: &Path, sources: &[PathBuf]) -> Result<(), Error> {
    let write_error = |source| Error::WriteImages {
        dir: dir.to_owned(),
        source,
    };
    fs::create_dir_all(target_dir()).map_err(write_error)?;
    let work = tempfile::tempdir_in(target_dir()).map_err(write_error)?;
    let mut objects = vec![PathBuf::new()];
    for source in sources {
        let name = source.file_name().and_then(OsStr::to_str).unwrap_or("");
        let is_code = name.ends_with(".c") || name.ends_with(".S");
        if is_code && name != ENTRY && name != SETUP_HEADER {
            let object = work.path().join(format!("{name}.o"));
            compile(source, &object, &[])?;
            objects.push(object);
        }
    }
    let script = source_dir.join("guest.ld");
    for (image, defines) in [
        ("pvh.elf", vec!["-DWITH_PVH_NOTE".to_owned()]),
        ("linux64.elf", vec![]),
    ] {
        objects[0] = work.path().join(format!("{image}.entry.o"));
        compile(&source_dir.join(ENTRY), &objects[0], &defines)?;
        link(&script, &objects, &work.path().join(image))?;
    }
    write_bzimage(work.path(), source_dir)?;
    match fs::rename(work.path(), dir) {
        // Another test process was faster: its images are the same.
        Err(_) if dir.exists() => Ok(()),
        result => result.map_err(write_error),
    }
}

/// Setup header, then the flat image: what a build of Linux does for its own bzImage.
fn write_bzimage(work: &Path, source_dir: &Path) -> Result<(), Error> {
    let write_error = |source| Error::WriteImages {
        dir: work.to_owned(),
        source,
    };
    let path = |name: &str| work.join(name).into_os_string();
    run(
        "objcopy",
        &[
            "-O".into(),
            "binary".into(),
            path("linux64.elf"),
            path("flat"),
        ],
    )?;
    let payload = fs::read(work.join("flat")).map_err(write_error)?;
    // From the image's address to the end of its zeroed data and stacks, generously.
    let memory_size = payload.len().next_multiple_of(4096) + (1 << 20);
    let defines = [
        format!("-DPAYLOAD_SIZE={}", payload.len()),
        format!("-DMEMORY_SIZE={memory_size}"),
    ];
    compile(
        &source_dir.join(SETUP_HEADER),
        &work.join("setup.o"),
        &defines,
    )?;
    run(
        "objcopy",
        &[
            "-O".into(),
            "binary".into(),
            "-j".into(),
            ".text".into(),
            path("setup.o"),
            path("setup"),
        ],
    )?;
    let mut image = fs::read(work.join("setup")).map_err(write_error)?;
    image.extend_from_slice(&payload);
    fs::write(work.join("bzImage"), image).map_err(write_error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_have_the_headers_that_loaders_look_for() {
        let images = build().expect("the guest builds here");
        let pvh = fs::read(images.pvh).unwrap();
        let linux64 = fs::read(images.linux64).unwrap();
        let note = b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0\0\0\x10\0";
        let has_note = |elf: &[u8]| elf.windows(note.len()).any(|window| window == note);
        assert!(has_note(&pvh) && !has_note(&linux64));
        for elf in [&pvh, &linux64] {
            assert_eq!(elf[24..32], 0x10_0200u64.to_le_bytes(), "64-bit entry");
        }
        let bzimage = fs::read(images.bzimage).unwrap();
        assert_eq!(&bzimage[0x1fe..0x200], b"\x55\xaa");
        assert_eq!(&bzimage[0x202..0x208], b"HdrS\x0f\x02");
        assert_eq!(bzimage[1024], 0xba, "mov $COM1, %edx of the 32-bit entry");
        assert_eq!(
            bzimage[1024 + 0x200],
            0xfa,
            "cli of the 64-bit entry at 0x200"
        );
    }

    #[test]
    fn bss_fits_the_init_size_of_the_setup_header() {
        let images = build().expect("the guest builds here");
        let elf = fs::read(images.linux64).unwrap();
        let memory_size = u64::from_le_bytes(elf[64 + 40..64 + 48].try_into().unwrap());
        let bzimage = fs::read(images.bzimage).unwrap();
        let init_size = u32::from_le_bytes(bzimage[0x260..0x264].try_into().unwrap());
        assert!(memory_size <= u64::from(init_size));
        assert!(memory_size < 2 << 20, "a 4 MiB machine has to hold it");
    }
}
