//! The modules of an unpacked kernel package: found by name, decompressed once, ordered by what they depend on.
//!
//! busybox has no reliable modprobe for compressed modules and the package has no `modules.dep` before it is
//! installed, so both jobs are done here, from the `depends=` entry that each module carries.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::Error;
use crate::process;

/// The modules below one `lib/modules/RELEASE`.
pub struct ModuleTree {
    files: BTreeMap<String, PathBuf>,
    builtin: String,
    directory: PathBuf,
    unpacked: PathBuf,
}

impl ModuleTree {
    /// Indexes the modules below `directory`; decompressed ones are kept in `unpacked`.
    pub fn open(directory: &Path, unpacked: &Path) -> Result<ModuleTree, Error> {
        let mut files = BTreeMap::new();
        let mut pending = vec![directory.to_path_buf()];
        while let Some(next) = pending.pop() {
            for entry in fs::read_dir(&next).map_err(Error::file("list", &next))? {
                let entry = entry.map_err(Error::file("list", &next))?;
                let kind = entry
                    .file_type()
                    .map_err(Error::file("read", &entry.path()))?;
                if kind.is_dir() {
                    pending.push(entry.path());
                } else if let Some(name) = module_name(&entry.path()) {
                    files.insert(name, entry.path());
                }
            }
        }
        let list = directory.join("modules.builtin");
        let builtin = fs::read_to_string(&list)
            .map_err(Error::file("read", &list))?
            .replace('-', "_");
        fs::create_dir_all(unpacked).map_err(Error::file("create", unpacked))?;
        Ok(ModuleTree {
            files,
            builtin,
            directory: directory.into(),
            unpacked: unpacked.into(),
        })
    }

    /// Decompressed files of these modules and of all they depend on, in the order to load them. Names that are
    /// built into the kernel are left out.
    pub fn load_order(&self, names: &[&str]) -> Result<Vec<PathBuf>, Error> {
        let mut order = Vec::new();
        for name in names {
            self.add(name, &mut order)?;
        }
        Ok(order)
    }

    fn add(&self, name: &str, order: &mut Vec<PathBuf>) -> Result<(), Error> {
        let name = name.replace('-', "_");
        let Some(packed) = self.files.get(&name) else {
            if self.builtin.contains(&format!("/{name}.ko")) {
                return Ok(());
            }
            return Err(Error::Missing {
                what: format!("module {name}"),
                searched: self.directory.clone(),
            });
        };
        let file = self.unpack(&name, packed)?;
        if order.contains(&file) {
            return Ok(());
        }
        let contents = fs::read(&file).map_err(Error::file("read", &file))?;
        for dependency in dependencies(&contents) {
            self.add(&dependency, order)?;
        }
        order.push(file);
        Ok(())
    }

    fn unpack(&self, name: &str, packed: &Path) -> Result<PathBuf, Error> {
        let file = self.unpacked.join(format!("{name}.ko"));
        if file.exists() {
            return Ok(file);
        }
        let program = match packed.extension().and_then(|extension| extension.to_str()) {
            Some("xz") => "xz",
            Some("zst") => "zstd",
            Some("gz") => "gzip",
            _ => {
                return fs::copy(packed, &file)
                    .map(|_| file.clone())
                    .map_err(Error::file("copy", packed));
            }
        };
        let partial = file.with_extension("partial");
        let output = File::create(&partial).map_err(Error::file("create", &partial))?;
        process::run_visibly(Command::new(program).arg("-dc").arg(packed).stdout(output))?;
        fs::rename(&partial, &file).map_err(Error::file("rename", &partial))?;
        Ok(file)
    }
}

/// The module names in the `depends=` entry of a module file.
pub fn dependencies(module: &[u8]) -> Vec<String> {
    const ENTRY: &[u8] = b"\0depends=";
    let Some(at) = module
        .windows(ENTRY.len())
        .position(|window| window == ENTRY)
    else {
        return Vec::new();
    };
    let list = module[at + ENTRY.len()..]
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default();
    let list = String::from_utf8_lossy(list);
    list.split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_string)
        .collect()
}

fn module_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let (stem, extension) = name.split_once(".ko")?;
    ["", ".xz", ".zst", ".gz"]
        .contains(&extension)
        .then(|| stem.replace('-', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(modules: &[(&str, &str)]) -> (tempfile::TempDir, ModuleTree) {
        let directory = tempfile::tempdir().unwrap();
        let kernel = directory.path().join("kernel");
        fs::create_dir(&kernel).unwrap();
        for (name, depends) in modules {
            fs::write(kernel.join(name), format!("ELF\0depends={depends}\0more")).unwrap();
        }
        fs::write(
            directory.path().join("modules.builtin"),
            "kernel/drivers/pci-built.ko\n",
        )
        .unwrap();
        let opened = ModuleTree::open(&kernel, &directory.path().join("unpacked"));
        assert!(
            opened.is_err(),
            "the list of built-in modules is beside the modules, not elsewhere"
        );
        let tree = ModuleTree::open(directory.path(), &directory.path().join("unpacked")).unwrap();
        (directory, tree)
    }

    #[test]
    fn dependencies_load_first_and_once() {
        let (_keep, tree) = tree(&[
            ("a-b.ko", "c,d"),
            ("c.ko", "d,pci-built"),
            ("d.ko", ""),
            ("e.ko", ""),
        ]);
        let order = tree.load_order(&["a-b", "d"]).unwrap();
        let names: Vec<_> = order
            .iter()
            .map(|path| path.file_stem().unwrap().to_str().unwrap())
            .collect();
        assert_eq!(names, ["d", "c", "a_b"]);
    }

    #[test]
    fn a_module_that_is_nowhere_is_named() {
        let (_keep, tree) = tree(&[("a.ko", "gone")]);
        let error = tree.load_order(&["a"]).unwrap_err();
        assert!(error.to_string().contains("module gone"), "{error}");
    }
}
