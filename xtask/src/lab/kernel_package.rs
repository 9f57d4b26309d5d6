//! Which kernel the lab runs: the newest full kernel of the distribution's 6.12 series, else the newest that can
//! migrate mtty (6.7 or later).

use crate::error::Error;
use crate::lab::apt::{PrivateApt, numbers};

const OLDEST: [u64; 2] = [6, 7];
const PREFERRED: [u64; 2] = [6, 12];

/// A kernel and the packages that hold its parts.
#[derive(Clone, Debug)]
pub struct KernelPackages {
    /// The release as `uname -r` prints it.
    pub release: String,
    /// Image, modules, headers and their build tools.
    pub packages: Vec<String>,
    /// The package with the kernel's source.
    pub source: String,
}

impl KernelPackages {
    /// Chooses among what the private apt root offers.
    pub fn choose(apt: &PrivateApt) -> Result<KernelPackages, Error> {
        let images = apt.names("linux-image-")?;
        let headers = apt.names("linux-headers-")?;
        let (release, image) = best(&images, &headers).ok_or(Error::NoKernel)?;
        let numbers = numbers(&release);
        let sources = apt.names("linux-source-")?;
        let source = [
            format!("linux-source-{}.{}", numbers[0], numbers[1]),
            format!("linux-source-{}.{}.0", numbers[0], numbers[1]),
        ]
        .into_iter()
        .find(|name| sources.contains(name))
        .ok_or(Error::NoKernel)?;

        let mut packages = vec![image, format!("linux-headers-{release}")];
        let extra = format!("linux-modules-extra-{release}");
        if apt.names(&extra)?.contains(&extra) {
            packages.push(extra);
        }
        let mut next = 0;
        while next < packages.len() {
            for name in apt.depends(&packages[next])? {
                if is_part(&name) && !packages.contains(&name) {
                    packages.push(name);
                }
            }
            next += 1;
        }
        Ok(KernelPackages {
            release,
            packages,
            source,
        })
    }
}

/// The newest usable release and the package of its image.
fn best(images: &[String], headers: &[String]) -> Option<(String, String)> {
    let candidates = images
        .iter()
        .filter_map(|image| Some((release_of(image)?, image)));
    candidates
        .filter(|(release, _)| numbers(release)[..] >= OLDEST[..])
        .filter(|(release, _)| headers.contains(&format!("linux-headers-{release}")))
        .max_by_key(|(release, image)| {
            let numbers = numbers(release);
            // Of the same kernel, the signed package: it is the one that mirrors keep longest.
            (
                numbers.starts_with(&PREFERRED),
                numbers,
                !image.contains("unsigned"),
            )
        })
        .map(|(release, image)| (release, image.clone()))
}

/// The release in the name of a full-flavour image package: neither cloud, realtime nor debug.
fn release_of(image: &str) -> Option<String> {
    let name = image.strip_prefix("linux-image-")?;
    let name = name.strip_prefix("unsigned-").unwrap_or(name);
    let release = name.strip_suffix("-unsigned").unwrap_or(name);
    let version = release
        .strip_suffix("-amd64")
        .or_else(|| release.strip_suffix("-generic"))?;
    let full = version.starts_with(|first: char| first.is_ascii_digit())
        && !version.ends_with("-cloud")
        && !version.ends_with("-rt")
        && numbers(version).len() >= 3;
    full.then(|| release.to_string())
}

fn is_part(package: &str) -> bool {
    [
        "linux-headers-",
        "linux-kbuild-",
        "linux-modules-",
        "linux-binary-",
    ]
    .iter()
    .any(|prefix| package.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(images: &[&str]) -> Option<(String, String)> {
        let images: Vec<String> = images.iter().map(ToString::to_string).collect();
        let headers: Vec<String> = images
            .iter()
            .filter_map(|image| release_of(image))
            .map(|r| format!("linux-headers-{r}"))
            .collect();
        best(&images, &headers)
    }

    #[test]
    fn newest_full_kernel_of_the_preferred_series_wins() {
        let chosen = choose(&[
            "linux-image-6.1.0-40-amd64",
            "linux-image-6.12.9+deb12-amd64",
            "linux-image-6.12.117+deb12-amd64-unsigned",
            "linux-image-6.12.117+deb12-amd64",
            "linux-image-6.12.118+deb12-cloud-amd64",
            "linux-image-6.12.118+deb12-rt-amd64",
            "linux-image-6.12.118+deb12-amd64-dbg",
            "linux-image-6.16.3+deb13-amd64",
            "linux-image-amd64",
        ]);
        let (release, image) = chosen.unwrap();
        assert_eq!(release, "6.12.117+deb12-amd64");
        assert_eq!(image, "linux-image-6.12.117+deb12-amd64");
    }

    #[test]
    fn without_the_series_the_newest_that_can_migrate_is_taken() {
        let chosen = choose(&[
            "linux-image-unsigned-6.8.0-50-generic",
            "linux-image-6.5.0-9-generic",
        ]);
        assert_eq!(chosen.unwrap().0, "6.8.0-50-generic");
        assert!(choose(&["linux-image-6.1.0-40-amd64"]).is_none());
    }

    #[test]
    fn an_image_without_headers_is_no_candidate() {
        assert!(best(&["linux-image-6.12.1-amd64".to_string()], &[]).is_none());
    }
}
