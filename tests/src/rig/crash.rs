//! Where a rig's daemons are told at which crash point to die.

use concord_daemon::crash;

use super::Rig;

impl Rig {
    /// A folder in which a file with a crash point's name kills the first daemon that reaches that
    /// point, from each daemon's next start on.
    pub fn crash_folder(&mut self) -> std::io::Result<tempfile::TempDir> {
        let folder = tempfile::tempdir()?;
        self.set_env(crash::DIRECTORY, &folder.path().display().to_string());
        Ok(folder)
    }
}
