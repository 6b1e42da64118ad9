/* The only program of the machine that boot.py starts: runs mednca-run on a scan, says what came of it, and stops. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static void show(const char *path, const char *begin)
{
    char line[256];
    FILE *file = fopen(path, "r");
    while (file && fgets(line, sizeof line, file)) {
        const char *p = line;
        const char *q = begin;
        while (*q && *p == *q)
            p++, q++;
        if (!*q)
            printf("%s", line);
    }
    if (file)
        fclose(file);
}

static void run(char *const words[])
{
    int status = -1;
    const pid_t child = fork();
    if (!child) {
        execv(words[0], words);
        _exit(127);
    }
    waitpid(child, &status, 0);
    printf("status %d\n", status);
}

int main(void)
{
    char *fp32[] = {"/mednca-run", "/model.safetensors", "/scan.nii", "-o", "/fp32.nii", 0};
    char *int16[] = {"/mednca-run", "/model.safetensors", "/scan.nii", "-o", "/int16.nii", "--int16", 0};
    char steps[128] = ""; /* one for each level: boot.py knows how many there are */
    char *bench[] = {"/mednca-run", "/model.safetensors", "--bench",    "--size",  "320x320", "--steps",
                     steps,         "--ensemble",         "1",          "--quiet", "--int16", 0};
    FILE *told = fopen("/steps", "r");
    if (told && fgets(steps, sizeof steps, told))
        steps[strcspn(steps, "\n")] = 0;
    setvbuf(stdout, 0, _IONBF, 0);
    dup2(1, 2);
    mkdir("/proc", 0755);
    mount("proc", "/proc", "proc", 0, 0);
    show("/proc/cpuinfo", "model name");
    show("/proc/cpuinfo", "Hardware");
    show("/proc/meminfo", "MemTotal");
    run(fp32);
    run(int16);
    run(bench);
    bench[10] = 0; /* the same in fp32 */
    run(bench);
    const char *masks[] = {"/fp32.nii", "/int16.nii"};
    for (int i = 0; i < 2; i++) {
        uint64_t hash = 0xcbf29ce484222325u;
        FILE *file = fopen(masks[i], "rb");
        for (int byte; file && (byte = getc(file)) != EOF;)
            hash = (hash ^ (uint64_t)byte) * 0x100000001b3u;
        printf("hash %s %016llx\n", masks[i], (unsigned long long)hash);
    }
    printf("DONE\n");
    reboot(RB_POWER_OFF);
    for (;;)
        pause();
}
