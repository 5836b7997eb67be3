//! Where the keys and the region come from: the configuration, else the environment, else the shared files of the AWS
//! tools. Nothing is fetched from anywhere.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::{BuildError, Secret};

/// A pair of AWS keys, with a token where they are temporary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AwsCredentials {
    pub access_key_id: Secret,
    pub secret_access_key: Secret,
    pub session_token: Option<Secret>,
}

/// Where credentials were found.
#[derive(Debug)]
pub(super) enum Source {
    Given(AwsCredentials),
    File { path: PathBuf, profile: String, credentials: AwsCredentials },
}

impl Source {
    pub(super) fn credentials(&self) -> &AwsCredentials {
        match self {
            Source::Given(credentials) | Source::File { credentials, .. } => credentials,
        }
    }

    /// What the file holds by now; `None` for credentials from elsewhere, and where the file is no longer good.
    pub(super) fn reread(&self) -> Option<AwsCredentials> {
        let Source::File { path, profile, .. } = self else { return None };
        of_profile(&std::fs::read_to_string(path).ok()?, profile)
    }
}

/// Environment and files.
pub(super) struct Surroundings<'a> {
    variable: &'a dyn Fn(&str) -> Option<String>,
    read: &'a dyn Fn(&Path) -> io::Result<String>,
}

impl Surroundings<'static> {
    pub(super) fn of_process() -> Surroundings<'static> {
        Surroundings { variable: &|name| std::env::var(name).ok(), read: &|path| std::fs::read_to_string(path) }
    }
}

/// The region and the credentials, of which those given come first.
///
/// # Errors
/// [`BuildError::Aws`] says where they were looked for.
pub(super) fn resolve(
    region: Option<String>,
    given: Option<AwsCredentials>,
    around: &Surroundings<'_>,
) -> Result<(String, Source), BuildError> {
    let set = |name: &str| (around.variable)(name).filter(|value| !value.is_empty());
    let profile = set("AWS_PROFILE").unwrap_or_else(|| "default".to_owned());
    let file = |variable: &str, name: &str| match set(variable) {
        Some(path) => Some(PathBuf::from(path)),
        None => Some(Path::new(&set("HOME")?).join(".aws").join(name)),
    };
    let region = region.or_else(|| set("AWS_REGION")).or_else(|| set("AWS_DEFAULT_REGION")).or_else(|| {
        let text = (around.read)(&file("AWS_CONFIG_FILE", "config")?).ok()?;
        let section = if profile == "default" { profile.clone() } else { format!("profile {profile}") };
        entry(&text, &section, "region")
    });
    let Some(region) = region else {
        return fail("no region: give region, or set AWS_REGION or the profile's in the shared configuration file".to_owned());
    };
    if region.is_empty() || !region.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return fail(format!("`{region}` is no region; it looks like eu-west-1"));
    }
    if let Some(credentials) = given {
        return Ok((region, Source::Given(credentials)));
    }
    match (set("AWS_ACCESS_KEY_ID"), set("AWS_SECRET_ACCESS_KEY")) {
        (Some(id), Some(secret)) => {
            let session_token = set("AWS_SESSION_TOKEN").map(Secret::new);
            let credentials =
                AwsCredentials { access_key_id: Secret::new(id), secret_access_key: Secret::new(secret), session_token };
            return Ok((region, Source::Given(credentials)));
        }
        (None, None) => {}
        _ => return fail("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY must both be set, or neither".to_owned()),
    }
    let nowhere = "no credentials: give access_key_id and secret_access_key, or set AWS_ACCESS_KEY_ID and \
                   AWS_SECRET_ACCESS_KEY, or have a shared credentials file";
    let Some(path) = file("AWS_SHARED_CREDENTIALS_FILE", "credentials") else { return fail(nowhere.to_owned()) };
    match (around.read)(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => fail(format!("{nowhere} (looked for {})", path.display())),
        Err(e) => fail(format!("{}: cannot be read: {e}", path.display())),
        Ok(text) => match of_profile(&text, &profile) {
            Some(credentials) => Ok((region, Source::File { path, profile, credentials })),
            None => {
                let path = path.display();
                fail(format!("{path}: holds no aws_access_key_id and aws_secret_access_key under [{profile}]"))
            }
        },
    }
}

fn fail<T>(problem: String) -> Result<T, BuildError> {
    Err(BuildError::Aws(problem))
}

fn of_profile(text: &str, profile: &str) -> Option<AwsCredentials> {
    let secret = |key| entry(text, profile, key).map(Secret::new);
    Some(AwsCredentials {
        access_key_id: secret("aws_access_key_id")?,
        secret_access_key: secret("aws_secret_access_key")?,
        session_token: secret("aws_session_token"),
    })
}

/// A value of the AWS tools' kind of INI file: `[section]`, `key = value`, nested settings indented.
fn entry(text: &str, section: &str, key: &str) -> Option<String> {
    let mut within = false;
    for line in text.lines().filter(|line| !line.starts_with([' ', '\t', '#', ';'])) {
        if let Some(header) = line.trim_end().strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            within = header.split_whitespace().eq(section.split_whitespace());
        } else if within
            && let Some((name, value)) = line.split_once('=')
            && name.trim() == key
        {
            return Some(value.trim().to_owned()).filter(|value| !value.is_empty());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREDENTIALS: &str = "# mine\n[default]\naws_access_key_id = AKID\naws_secret_access_key=s3cr=t\n\n[mail]\n\
                               aws_access_key_id = AKMAIL\naws_secret_access_key = x\naws_session_token = tok\n[half]\naws_access_key_id = A\n";
    const CONFIG: &str = "[default]\nregion = eu-west-1\ns3 =\n  region = nowhere\n[profile  mail]\nregion=us-east-2\n";

    fn found(region: Option<&str>, variables: &[(&str, &str)]) -> Result<(String, String, Option<String>), String> {
        let variable = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        let read = |path: &Path| match path.to_str() {
            Some("/home/jo/.aws/credentials" | "/elsewhere") => Ok(CREDENTIALS.to_owned()),
            Some("/home/jo/.aws/config") => Ok(CONFIG.to_owned()),
            Some("/locked") => Err(io::ErrorKind::PermissionDenied.into()),
            _ => Err(io::ErrorKind::NotFound.into()),
        };
        let around = Surroundings { variable: &variable, read: &read };
        let (region, source) = resolve(region.map(str::to_owned), None, &around).map_err(|e| e.to_string())?;
        let c = source.credentials();
        Ok((region, c.access_key_id.expose().to_owned(), c.session_token.as_ref().map(|t| t.expose().to_owned())))
    }

    #[test]
    fn environment_then_files() {
        let home = ("HOME", "/home/jo");
        let (key, secret) = (("AWS_ACCESS_KEY_ID", "AKENV"), ("AWS_SECRET_ACCESS_KEY", "x"));
        let some = |region: &str, id: &str, token: Option<&str>| Ok((region.into(), id.into(), token.map(str::to_owned)));
        for (variables, want) in [
            (vec![home], some("eu-west-1", "AKID", None)),
            (vec![home, ("AWS_PROFILE", "mail")], some("us-east-2", "AKMAIL", Some("tok"))),
            (vec![home, ("AWS_DEFAULT_REGION", "ap-south-1")], some("ap-south-1", "AKID", None)),
            (vec![("AWS_REGION", "a"), ("AWS_DEFAULT_REGION", "b"), key, secret], some("a", "AKENV", None)),
            (vec![home, key, secret, ("AWS_SESSION_TOKEN", "t")], some("eu-west-1", "AKENV", Some("t"))),
            (vec![("AWS_REGION", "a"), ("AWS_SHARED_CREDENTIALS_FILE", "/elsewhere")], some("a", "AKID", None)),
        ] {
            assert_eq!(found(None, &variables), want, "{variables:?}");
        }
        assert_eq!(found(Some("eu-north-1"), &[home]).unwrap().0, "eu-north-1");
    }

    #[test]
    fn what_is_missing_is_said() {
        let region = ("AWS_REGION", "eu-west-1");
        for (variables, want) in [
            (vec![], "no region"),
            (vec![("AWS_REGION", "http://x")], "is no region"),
            (vec![region], "no credentials"),
            (vec![region, ("AWS_ACCESS_KEY_ID", "A")], "must both be set"),
            (vec![region, ("HOME", "/home/al")], "looked for /home/al/.aws/credentials"),
            (vec![region, ("AWS_SHARED_CREDENTIALS_FILE", "/locked")], "/locked: cannot be read"),
            (vec![region, ("HOME", "/home/jo"), ("AWS_PROFILE", "half")], "under [half]"),
            (vec![region, ("HOME", "/home/jo"), ("AWS_PROFILE", "none")], "under [none]"),
        ] {
            let error = found(None, &variables).unwrap_err();
            assert!(error.contains(want), "{variables:?}: {error}");
        }
    }

    #[test]
    fn a_renewed_file_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("credentials");
        std::fs::write(&path, CREDENTIALS).unwrap();
        let credentials = of_profile(CREDENTIALS, "mail").unwrap();
        let source = Source::File { path: path.clone(), profile: "mail".into(), credentials };
        std::fs::write(&path, CREDENTIALS.replace("= tok", "= newer")).unwrap();
        assert_eq!(source.reread().unwrap().session_token.unwrap().expose(), "newer");
        std::fs::write(&path, "").unwrap();
        assert!(source.reread().is_none());
    }
}
