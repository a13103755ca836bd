#!/bin/sh
# Last stage of the template `polyglot`, run by chroot in the new root. What it needs lies in /.build.
set -eu
umask 022

# --- Python packages: what drives Jupyter's kernels, and the kernel of Java -------------------------------------------
site=$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
if [ -d /.build/site ]; then
    sed -i '1s|^#!.*python.*|#!/usr/bin/python3|' /.build/site/bin/*
    mv /.build/site/bin/* /usr/local/bin/
    cp -a /.build/site/share/. /usr/local/share/
    rm -rf /.build/site/bin /.build/site/share /.build/site/.lock
    mv /.build/site/* "$site"/
else
    pip3 install --quiet --no-compile --no-cache-dir --no-deps --require-hashes -r /.build/requirements.txt
fi
python3 -m compileall -q -j 2 -x '/tests?/' "$site" || true

# Java's kernel without its launcher, which is a second JVM; one compiler and one collector are what short cells need.
kernel=/usr/local/share/jupyter/kernels/java
cat >"$kernel/kernel.json" <<EOF
{
  "argv": ["java", "--add-opens", "jdk.jshell/jdk.jshell=ALL-UNNAMED", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
           "-Xshare:auto", "-jar", "$kernel/jjava.jar", "{connection_file}"],
  "display_name": "Java", "language": "java", "interrupt_mode": "message"
}
EOF
rm -f "$kernel/jjava-launcher.jar"
chmod -R a+rwX /usr/local

# --- as the default template leaves it ---------------------------------------------------------------------------------
rm -rf /usr/share/man/* /usr/share/R/doc /usr/lib/R/library/*/doc /usr/lib/R/library/*/help /usr/lib/R/library/*/html
for section in 1 2 3 4 5 6 7 8; do mkdir -p "/usr/share/man/man$section"; done
rm -rf /.build /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/*.log /var/log/apt/* /tmp/* /root/.cache/pip
