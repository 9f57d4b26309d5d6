//! A private apt root: its own sources, lists and cache below the lab's directory.
//!
//! The machine's apt configuration is read (for the archive's address, the keys, a proxy) and never changed.
//! Suites that the machine lacks but its distribution has (security, backports) are added to the private sources
//! only, because that is where a newer kernel comes from on an older release.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::error::Error;
use crate::process;

const ATTEMPTS: u32 = 4;
const KEYRINGS: [&str; 4] = [
    "/usr/share/keyrings/debian-archive-keyring.gpg",
    "/usr/share/keyrings/debian-archive-keyring.pgp",
    "/usr/share/keyrings/ubuntu-archive-keyring.gpg",
    "/usr/share/keyrings/ubuntu-archive-keyring.pgp",
];

/// One suite and component of an archive, as apt knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Source {
    site: String,
    suite: String,
    component: String,
}

/// An apt that works below one directory.
pub struct PrivateApt {
    options: Vec<String>,
}

impl PrivateApt {
    /// Makes the root in `directory` and fetches the package lists.
    pub fn open(directory: &Path) -> Result<PrivateApt, Error> {
        for part in ["lists/partial", "cache/archives/partial"] {
            let path = directory.join(part);
            fs::create_dir_all(&path).map_err(Error::file("create", &path))?;
        }
        let sources_file = directory.join("sources.list");
        let apt = PrivateApt {
            options: options(directory, &sources_file),
        };

        let own = machine_sources(directory)?;
        let mut wider = own.clone();
        wider.extend(missing_suites(&own));
        write_sources(&sources_file, &wider)?;
        // A distribution without one of the added suites fails as a whole: then its own suites must do.
        if apt.update(2).is_err() {
            write_sources(&sources_file, &own)?;
            apt.update(ATTEMPTS)?;
        }
        Ok(apt)
    }

    /// All package names that begin with `prefix`.
    pub fn names(&self, prefix: &str) -> Result<Vec<String>, Error> {
        let text = process::run(self.command("apt-cache").args(["pkgnames", prefix]))?;
        Ok(text.lines().map(str::to_string).collect())
    }

    /// The first alternatives of what a package depends on, without versions.
    pub fn depends(&self, package: &str) -> Result<Vec<String>, Error> {
        let text =
            process::run(
                self.command("apt-cache")
                    .args(["show", "--no-all-versions", package]),
            )?;
        Ok(parse_depends(&text))
    }

    /// The version apt would choose for a package, empty when there is none.
    pub fn version(&self, package: &str) -> Result<String, Error> {
        let text =
            process::run(
                self.command("apt-cache")
                    .args(["show", "--no-all-versions", package]),
            )?;
        let version = text.lines().find_map(|line| line.strip_prefix("Version: "));
        Ok(version.unwrap_or_default().trim().to_string())
    }

    /// Every version of a package that is offered.
    pub fn versions(&self, package: &str) -> Result<Vec<String>, Error> {
        let text = process::run(self.command("apt-cache").args(["show", package]))?;
        let versions = text
            .lines()
            .filter_map(|line| line.strip_prefix("Version: "));
        Ok(versions.map(|version| version.trim().to_string()).collect())
    }

    /// Downloads packages, `name` or `name=version`, without what they depend on, into `directory`.
    pub fn download(&self, packages: &[String], directory: &Path) -> Result<(), Error> {
        retry(ATTEMPTS, || {
            let mut command = self.command("apt-get");
            command
                .arg("download")
                .args(packages)
                .current_dir(directory);
            process::run(&mut command).map(drop)
        })
    }

    fn update(&self, attempts: u32) -> Result<(), Error> {
        retry(attempts, || {
            process::run(self.command("apt-get").arg("update")).map(drop)
        })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .args(&self.options)
            .env("LC_ALL", "C")
            .env("DEBIAN_FRONTEND", "noninteractive");
        command
    }
}

/// Unpacks a package's files below `directory`; nothing is installed and no script of it runs.
pub fn unpack(package: &Path, directory: &Path) -> Result<(), Error> {
    process::run(
        Command::new("dpkg")
            .arg("--extract")
            .arg(package)
            .arg(directory),
    )
    .map(drop)
}

/// Installs packages on the machine for the programs that are missing; the lab's own files never come this way.
pub fn install(packages: &[&str]) -> Result<(), Error> {
    let install = || {
        let mut command = Command::new("apt-get");
        command.args([
            "-o",
            "DPkg::Lock::Timeout=600",
            "install",
            "--yes",
            "--no-install-recommends",
        ]);
        command
            .args(packages)
            .env("LC_ALL", "C")
            .env("DEBIAN_FRONTEND", "noninteractive");
        process::run(&mut command).map(drop)
    };
    if install().is_ok() {
        return Ok(());
    }
    // A fresh machine has no package lists, or old ones.
    retry(ATTEMPTS, || {
        let mut update = Command::new("apt-get");
        process::run(update.args(["-o", "DPkg::Lock::Timeout=600", "update"])).map(drop)
    })?;
    retry(2, install)
}

fn options(directory: &Path, sources: &Path) -> Vec<String> {
    let settings = [
        format!("Dir::State::Lists={}", directory.join("lists").display()),
        format!("Dir::Cache={}", directory.join("cache").display()),
        format!("Dir::Etc::SourceList={}", sources.display()),
        "Dir::Etc::SourceParts=/dev/null".to_string(),
        "Acquire::Languages=none".to_string(),
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_string(),
        "Acquire::Retries=3".to_string(),
        "APT::Update::Error-Mode=any".to_string(),
        "APT::Sandbox::User=root".to_string(),
    ];
    settings
        .into_iter()
        .flat_map(|setting| ["-o".to_string(), setting])
        .collect()
}

/// The machine's own sources of its distribution. apt knows only those whose lists it has: a machine that never ran
/// an update gets its lists read into the private root.
fn machine_sources(directory: &Path) -> Result<Vec<Source>, Error> {
    let known = ask_for_sources(&[])?;
    if !known.is_empty() {
        return Ok(known);
    }
    let lists = directory.join("machine-lists/partial");
    fs::create_dir_all(&lists).map_err(Error::file("create", &lists))?;
    let options = [
        format!(
            "Dir::State::Lists={}",
            directory.join("machine-lists").display()
        ),
        format!("Dir::Cache={}", directory.join("cache").display()),
        "Acquire::Languages=none".to_string(),
        "APT::Sandbox::User=root".to_string(),
    ];
    let options: Vec<String> = options
        .into_iter()
        .flat_map(|setting| ["-o".to_string(), setting])
        .collect();
    // A foreign archive that cannot be reached must not stand in the way of the distribution's.
    let update = || process::run(Command::new("apt-get").args(&options).arg("update")).map(drop);
    let updated = retry(ATTEMPTS, update);
    let sources = ask_for_sources(&options)?;
    if sources.is_empty() {
        return Err(updated.err().unwrap_or(Error::NoSources));
    }
    Ok(sources)
}

fn ask_for_sources(options: &[String]) -> Result<Vec<Source>, Error> {
    const FIELDS: &str = "$(SITE) $(RELEASE) $(COMPONENT) $(ORIGIN)";
    let mut command = Command::new("apt-get");
    command
        .args(options)
        .args(["indextargets", "--format", FIELDS, "Created-By: Packages"]);
    Ok(parse_sources(&process::run(&mut command)?))
}

fn parse_sources(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(site), Some(suite), Some(component)) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        let origin = words.next().unwrap_or_default();
        let wanted = ["Debian", "Ubuntu"].contains(&origin);
        let source = Source {
            site: site.to_string(),
            suite: suite.to_string(),
            component: component.to_string(),
        };
        if wanted && !sources.contains(&source) {
            sources.push(source);
        }
    }
    sources
}

/// Suites of the same release that the machine does not use. Debian keeps security in an archive beside the main
/// one, Ubuntu in the main one.
fn missing_suites(own: &[Source]) -> Vec<Source> {
    let mut missing: Vec<Source> = Vec::new();
    for base in own.iter().filter(|source| !source.suite.contains('-')) {
        let debian = base.site.trim_end_matches('/').strip_suffix("/debian");
        let security = debian.map_or_else(
            || base.site.clone(),
            |host| format!("{host}/debian-security"),
        );
        for (site, suffix) in [(security, "security"), (base.site.clone(), "backports")] {
            let suite = format!("{}-{suffix}", base.suite);
            let known =
                |source: &Source| source.suite == suite && source.component == base.component;
            if !own.iter().any(known) {
                missing.push(Source {
                    site,
                    suite,
                    component: base.component.clone(),
                });
            }
        }
    }
    missing
}

fn write_sources(path: &Path, sources: &[Source]) -> Result<(), Error> {
    let keyring = KEYRINGS.iter().find(|path| Path::new(path).exists());
    let signed = keyring.map_or_else(String::new, |path| format!("[signed-by={path}] "));
    let lines = sources.iter().map(|source| {
        format!(
            "deb {signed}{} {} {}\n",
            source.site, source.suite, source.component
        )
    });
    fs::write(path, lines.collect::<String>()).map_err(Error::file("write", path))
}

fn parse_depends(record: &str) -> Vec<String> {
    let fields = record.lines().filter_map(|line| {
        line.strip_prefix("Depends: ")
            .or_else(|| line.strip_prefix("Pre-Depends: "))
    });
    fields
        .flat_map(|field| field.split(','))
        .filter_map(|clause| clause.split_whitespace().next())
        .map(|name| name.split(':').next().unwrap_or(name).to_string())
        .collect()
}

fn retry(attempts: u32, step: impl Fn() -> Result<(), Error>) -> Result<(), Error> {
    let mut attempt = 1;
    loop {
        match step() {
            Err(_) if attempt < attempts => thread::sleep(Duration::from_secs(2 << attempt)),
            result => return result,
        }
        attempt += 1;
    }
}

/// The one package file in `directory` whose name begins with `name` and an underscore.
pub fn downloaded(directory: &Path, name: &str) -> Result<PathBuf, Error> {
    let entries = fs::read_dir(directory).map_err(Error::file("list", directory))?;
    let prefix = format!("{name}_");
    entries
        .filter_map(Result::ok)
        .find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
        .ok_or_else(|| Error::Missing {
            what: format!("package {name}"),
            searched: directory.into(),
        })
}

/// All numbers of a version or release, in order, which is enough to compare those of one distribution's package.
pub fn numbers(version: &str) -> Vec<u64> {
    version
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|part| part.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_are_added_only_where_the_machine_lacks_them() {
        let text = "http://a.test/debian bookworm main Debian\n\
                    http://a.test/debian bookworm main Debian\n\
                    http://b.test/other stable main Vendor\n\
                    http://a.test/debian bookworm-backports main Debian\n";
        let own = parse_sources(text);
        assert_eq!(
            own.len(),
            2,
            "duplicates and foreign archives must go: {own:?}"
        );
        let missing = missing_suites(&own);
        assert_eq!(missing.len(), 1, "{missing:?}");
        assert_eq!(missing[0].site, "http://a.test/debian-security");
        assert_eq!(missing[0].suite, "bookworm-security");
    }

    #[test]
    fn ubuntu_keeps_security_in_the_same_archive() {
        let own = parse_sources("http://a.test/ubuntu noble main Ubuntu\n");
        let missing = missing_suites(&own);
        assert!(
            missing
                .iter()
                .all(|source| source.site == "http://a.test/ubuntu"),
            "{missing:?}"
        );
        assert_eq!(missing.len(), 2);
    }

    #[test]
    fn first_alternative_is_taken_from_depends() {
        let record = "Package: x\nPre-Depends: p\nDepends: a (>= 1), b:any | c, d\nSuggests: e\n";
        assert_eq!(parse_depends(record), ["p", "a", "b", "d"]);
    }
}
