#!/bin/sh
# Last stage of the default template, run by chroot in the new root. What it needs lies in /.build.
set -eu
umask 022

# --- trust: the authorities of the machine the template is made on -------------------------------------------------
if [ -d /.build/certificates ]; then
    cp /.build/certificates/*.crt /usr/local/share/ca-certificates/
    update-ca-certificates >/dev/null 2>&1
    # pip and npm are told by file as well: sudo drops the variables of the sandbox.
    printf '[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n' >/etc/pip.conf
    npm_trust='cafile=/etc/ssl/certs/ca-certificates.crt'
fi
cp /.build/environment /etc/environment
# Nobody is there to answer a package's questions.
printf 'debconf debconf/frontend select Noninteractive\n' | debconf-set-selections

# --- people --------------------------------------------------------------------------------------------------------
useradd --create-home --uid 1000 --user-group --shell /bin/bash user
printf 'user ALL=(ALL:ALL) NOPASSWD: ALL\n' >/etc/sudoers.d/90-user
chmod 0440 /etc/sudoers.d/90-user

# --- npm packages: npm's own archive, since Debian's package pulls in four hundred others ---------------------------
modules=/usr/local/lib/node_modules
mkdir -p /usr/local/bin
find /.build/npm -name '*.tgz' | while read -r archive; do
    name=${archive#/.build/npm/}
    name=${name%.tgz}
    mkdir -p "$modules/$name"
    tar -xzf "$archive" -C "$modules/$name" --strip-components=1 --no-same-owner
done
for name in npm npx; do
    ln -sf "../lib/node_modules/npm/bin/$name-cli.js" "/usr/local/bin/$name"
    chmod 0755 "$modules/npm/bin/$name-cli.js"
done
# Global packages go where `user` may write, not below /usr, where node itself lies.
printf 'prefix=/usr/local\nupdate-notifier=false\nfund=false\n%s\n' "${npm_trust:-}" >"$modules/npm/npmrc"

# npm calls what it installs into by the name of its folder, and fails where that has none (`Tracker "idealTree" already exists`,
# also npm 11). A Dockerfile's `RUN npm install` without a WORKDIR before it stands in such a folder: `/`. It is called `/` here.
arborist="$modules/npm/node_modules/@npmcli/arborist/lib/node.js"
sed -i "s|^      null\$|      (path === '/' ? '/' : null)|" "$arborist"
grep -q "path === '/'" "$arborist"

# --- Python packages -------------------------------------------------------------------------------------------------
rm -f /usr/lib/python3*/EXTERNALLY-MANAGED
site=$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
mkdir -p "$site"
if [ -d /.build/site ]; then
    # Programs were written for the interpreter that unpacked them: here they run with this one.
    sed -i '1s|^#!.*python.*|#!/usr/bin/python3|' /.build/site/bin/*
    mv /.build/site/bin/* /usr/local/bin/
    mkdir -p /usr/local/share
    [ ! -d /.build/site/share ] || cp -a /.build/site/share/. /usr/local/share/
    rm -rf /.build/site/bin /.build/site/share /.build/site/.lock
    mv /.build/site/* "$site"/
else
    pip3 install --quiet --no-compile --no-cache-dir --root-user-action=ignore --require-hashes -r /.build/requirements.txt
fi
# Byte code now, so that no sandbox compiles pandas for itself. Checked against the source's time, as ever: somebody who edits
# a package in place, to debug it, has to see the change.
python3 -m compileall -q -j 2 -x '/tests?/' "$site" || true
# pip as `user` installs into the same place.
chmod -R a+rwX /usr/local

# --- first starts are fast -------------------------------------------------------------------------------------------
su user -c 'cd && python3 -c "import matplotlib.font_manager"' >/dev/null
mkdir -p /root/.cache
cp -r /home/user/.cache/matplotlib /root/.cache/

# Every command runs in a login shell. Debian's profile starts two programs to say who asks and what is in a folder, which
# takes longer than the shell itself: 3.9 ms for all, 1.7 without them.
sed -i -e 's/"$(id -u)"/"${EUID:-$(id -u)}"/' -e 's|\$(run-parts --list --regex .* /etc/profile.d)|/etc/profile.d/*.sh|' /etc/profile

# --- folders and files that the server expects -----------------------------------------------------------------------
mkdir -p /.cloche /.e2b /code
chown user:user /code
printf '127.0.0.1 localhost\n::1 localhost\n' >/etc/hosts
printf 'sandbox\n' >/etc/hostname
rm -f /etc/resolv.conf
: >/etc/resolv.conf

# --- manuals and translations of the essential packages; dpkg leaves out those of all others ---------------------------
rm -rf /usr/share/man/* /usr/share/info/* /usr/share/locale/*
# Some packages' scripts make links in these.
for section in 1 2 3 4 5 6 7 8; do mkdir -p "/usr/share/man/man$section"; done
find /usr/share/doc -mindepth 1 ! -type d ! -name copyright -delete
find /usr/share/doc -mindepth 1 -type d -empty -delete

# --- apt: no translations, no fsync after each file; all else as Debian has it ----------------------------------------
rm -f /etc/apt/apt.conf.d/99mmdebstrap
printf 'Acquire::Languages "none";\n' >/etc/apt/apt.conf.d/90cloche
# Programs written for E2B call apt as `user`, as its documents print it; root is one password-less sudo away.
for name in apt apt-get; do
    printf '#!/bin/sh\n[ "$(id -u)" = 0 ] || exec sudo -nE /usr/bin/%s "$@"\nexec /usr/bin/%s "$@"\n' "$name" "$name" >"/usr/local/bin/$name"
    chmod 0755 "/usr/local/bin/$name"
done

rm -rf /.build /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/*.log /var/log/apt/* /tmp/* /root/.npm
